"""The control socket against nonsense, patience and numbers: it answers, and forgets them all."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PoolMaker
from tests.fuzz.mutation import mutated
from tests.fuzz.vitals import Bystander, Vitals, fuzz_seconds, settled
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE
from thinpoold.control.jsonrpc import MAX_LINE
from thinpoold.control.methods import METHODS

pytestmark = pytest.mark.slow

SLACK = 32 << 20
CONNECTIONS = 1000

# `stop` would do what it says. The others' names are not among these, so nobody else's volume is
# meant by chance.
_METHODS = [name for name in METHODS if name not in ("stop", "export-metadata")]
_NAMES = ["", "a", "b", "c", "a/b", "x" * 127, "y" * 128, "\0", "é" * 63, "\ud800", " "]
_NUMBERS = [0, 1, -1, 511, 512, 1 << 20, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 70]
_ODD: list[Any] = [None, True, False, 1.5, 1e308, [], {}, [[]], {"": None}, "1G", "yes"]


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    return new_pool()


def control(rig: PoolRig) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before there is a timeout: with one, connect does not wait for a place in the queue.
    peer.connect(str(Path(rig.socket).with_name("control.sock")))
    peer.settimeout(PATIENCE)
    return peer


def says_it_is_well(rig: PoolRig) -> bool:
    with rig.rpc() as client:
        return bool(client.call("status")["mode"] == "write")


def value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return dice.choice(_NAMES)
    if kind == 1:
        return dice.choice(_NUMBERS)
    if kind == 2:
        return dice.choice(_ODD)
    if kind == 3:
        return dice.choice(_NAMES[1:4])
    if kind == 4:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    keys = ["on_full", "discard", "low_water", "iops", "allow", "bps", "", "x"]
    return {dice.choice(keys): value(dice, depth + 1) for _ in range(dice.randrange(3))}


def call(dice: random.Random, number: int) -> dict[str, Any]:
    """A request: the method is there, its parameters may be anything, and often the right kind."""
    name = dice.choice(_METHODS)
    params: dict[str, Any] = {}
    for param in METHODS[name].params:
        if dice.random() < 0.9:
            params[param.name] = likely(dice, param.kind.title)
    if dice.random() < 0.1:
        params[dice.choice(["name", "nonsense", ""])] = value(dice)
    document: dict[str, Any] = {"jsonrpc": "2.0", "id": number, "method": name, "params": params}
    if dice.random() < 0.05:
        document[dice.choice(["jsonrpc", "id", "method", "params", "more"])] = value(dice)
    return document


def likely(dice: random.Random, title: str) -> Any:
    if dice.random() < 0.3:
        return value(dice)
    name = dice.choice(_NAMES[1:4])
    if "integer" in title:
        # Not a pool of exabytes, which is allowed.
        return dice.choice([512, 65536, 1 << 20, 3 << 20, -512, 1 << 62])
    if "arrays of two" in title:
        return [[name, dice.choice(_NAMES)] for _ in range(dice.randrange(1, 3))]
    if "array" in title:
        return [name]
    if "object" in title:
        return {dice.choice(["on_full", "low_water", "iops", "read_only"]): value(dice)}
    return dice.random() < 0.5 if "true" in title else name


# What a parser may choke on.
_PIECES = [b"[" * 5000, b'{"a":' * 900, b"9" * 5000, b"\xff\xfe"]


def lines(dice: random.Random) -> Iterator[bytes]:
    """Lines to send, each without its line feed."""
    number = 0
    while True:
        number += 1
        document: Any = call(dice, number)
        if dice.random() < 0.1:
            document = [call(dice, number) for _ in range(dice.randrange(5))]
        line = json.dumps(document).encode()
        if dice.random() < 0.5:
            line = mutated(dice, line, most=7, pieces=_PIECES)[:100_000].replace(b"\n", b" ")
        elif dice.random() < 0.02:
            line = dice.randbytes(dice.randrange(2000)).replace(b"\n", b"")
        elif dice.random() < 0.01:
            line = b"x" * (MAX_LINE + dice.randrange(100))
        yield line


def hurt(rig: PoolRig, dice: random.Random, seconds: float) -> int:
    """Send such lines for some time; every answer must be JSON-RPC. Returns how many went."""
    deadline, sent = time.monotonic() + seconds, 0
    source = lines(dice)
    while time.monotonic() < deadline:
        with control(rig) as peer, peer.makefile("rb") as answers:
            for _ in range(100):
                line = next(source)
                # A call after it shows that it was answered, or needed no answer, and that the
                # connection goes on.
                probe = {"jsonrpc": "2.0", "id": "probe", "method": "get"}
                peer.sendall(line + b"\n" + json.dumps(probe).encode() + b"\n")
                sent += 1
                while True:
                    answer = json.loads(answers.readline())
                    first = answer[0] if isinstance(answer, list) else answer
                    assert first["jsonrpc"] == "2.0"
                    assert ("result" in first) != ("error" in first)
                    if first.get("id") == "probe":
                        break
            if dice.random() < 0.5:
                peer.sendall(next(source)[: dice.randrange(1, 100)])
    return sent


def test_nonsense(rig: PoolRig, seed: int) -> None:
    dice = random.Random(seed)
    for name in "ab":
        rig.create(name, "1M")
    with Bystander(rig) as bystander:
        hurt(rig, dice, fuzz_seconds() / 4)
        # What is kept once is no leak: a leak goes on.
        for last in (False, False, True):
            bystander.goes_on()
            before = Vitals.of(rig.pid)
            sent = hurt(rig, dice, fuzz_seconds() / 2)
            assert sent > 100
            bystander.goes_on()
            settled(rig.pid, before, SLACK if last else 1 << 40)
            if Vitals.of(rig.pid).resident <= before.resident + SLACK:
                break
    log = (rig.directory / "thinpoold.log").read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:2000]


def test_half_open(rig: PoolRig) -> None:
    with Bystander(rig) as bystander:
        bystander.goes_on()
        before = Vitals.of(rig.pid)
        for half in (b"", b"{", b'{"jsonrpc":"2.0","id":1,"method":"status"}', b"x" * 300_000):
            peers = [control(rig) for _ in range(20)]
            for peer in peers:
                peer.sendall(half)
            assert says_it_is_well(rig)
            for peer in peers:
                peer.close()
        bystander.goes_on()
        settled(rig.pid, before, SLACK)


def test_a_client_that_does_not_read_is_dropped(rig: PoolRig) -> None:
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "status"}).encode() + b"\n"
    with Bystander(rig) as bystander:
        bystander.goes_on()
        before = Vitals.of(rig.pid)
        peer = control(rig)
        peer.settimeout(1.0)
        try:
            while True:
                peer.sendall(request * 100)
        except TimeoutError:
            pass
        bystander.goes_on()
        assert says_it_is_well(rig)
        # It is still connected; the daemon's patience ends by itself.
        settled(rig.pid, before, SLACK)
        peer.close()


def test_a_client_that_writes_a_byte_at_a_time(rig: PoolRig) -> None:
    request = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "get"}).encode() + b"\n"
    with control(rig) as slow, slow.makefile("rb") as answers:
        for place in range(len(request)):
            slow.sendall(request[place : place + 1])
            if place % 16 == 0:
                assert says_it_is_well(rig)
        assert json.loads(answers.readline())["id"] == 7


def test_a_thousand_connections(rig: PoolRig) -> None:
    with Bystander(rig) as bystander:
        for turn in range(2):
            peers = [control(rig) for _ in range(CONNECTIONS)]
            bystander.goes_on()
            # Those that say nothing make room for one who does.
            assert says_it_is_well(rig)
            for peer in peers:
                peer.close()
            if turn == 0:
                before = settled(rig.pid, Vitals(1 << 20, 40, 0), 1 << 40)
        settled(rig.pid, before, SLACK)


def test_many_that_ask_at_once(rig: PoolRig) -> None:
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                with rig.rpc() as client:
                    client.call("get")
        except BaseException as error:
            failures.append(error)

    with Bystander(rig) as bystander:
        bystander.goes_on()
        before = Vitals.of(rig.pid)
        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bystander.goes_on()
        settled(rig.pid, before, SLACK)
    assert not failures, failures
