"""The control socket of a real daemon: every verb of a running pool, and clients that misbehave."""

import json
import random
import socket

import pytest

from tests.integration.cli.outcomes import MIB, of_the_pool
from tests.support.pools import PoolRig
from tests.support.rpc import RpcError


def test_results_are_what_the_command_line_prints(running: PoolRig) -> None:
    running.create("a", "1M")
    with running.rpc() as rpc:
        for method, words, params in (
            ("tree", ["tree"], {}),
            ("get", ["get"], {}),
            ("uri", ["uri", "a"], {"name": "a"}),
            ("status", ["status"], {}),
        ):
            told, printed = rpc.call(method, **params), running.json(*words)
            if method == "status":
                # What the kernel counts is never the same twice.
                assert told["memory"].pop("resident") > 0 < printed["memory"].pop("resident")
            assert told == printed, method
        volumes = running.json("list")["volumes"]
        assert rpc.call("list") == {"volumes": [of_the_pool(one) for one in volumes]}
        assert rpc.call("info", name="a") == of_the_pool(running.json("info", "a"))


def test_every_change(running: PoolRig) -> None:
    with running.rpc() as rpc:
        assert rpc.call("create", name="b", size=MIB)["name"] == "b"
        assert rpc.call("snapshot", pairs=[["b", "b1"]])["volumes"][0]["origin"] == "b"
        assert rpc.call("resize", name="b", size=2 * MIB)["size"] == 2 * MIB
        assert rpc.call("rename", old="b", new="c")["name"] == "c"
        assert rpc.call("rollback", name="c", snapshot="b1")["volume"]["name"] == "c"
        assert rpc.call("delete", names=["c"], dry_run=True)["freed"] == 0
        assert rpc.call("delete", names=["c", "b1"])["volumes"] == ["c", "b1"]
        assert rpc.call("set", settings={"low_water": 11})["settings"]["low_water"] == 11
        assert rpc.call("grow", size=257 * MIB)["data"]["size"] == 257 * MIB


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("info", {"name": "nobody"}, 2),
        ("create", {"name": "", "size": MIB}, 1),
        ("create", {"name": "a/b", "size": MIB}, 1),
        ("create", {"name": "x" * 128, "size": MIB}, 1),
        ("create", {"name": "n", "size": 0}, 1),
        ("create", {"name": "n", "size": -512}, 1),
        ("create", {"name": "n", "size": 513}, 1),
        ("create", {"name": "n", "size": 1 << 62}, 1),
        ("create", {"name": "n", "size": MIB, "reserve": -1}, 1),
        ("create", {"name": "n", "size": 1.5}, -32602),
        ("create", {"name": "n", "size": "1M"}, -32602),
        ("create", {"name": 1, "size": MIB}, -32602),
        ("create", {"name": "n"}, -32602),
        ("create", {"name": "n", "size": MIB, "colour": "red"}, -32602),
        ("snapshot", {"pairs": []}, -32602),
        ("snapshot", {"pairs": [["nobody", "n"]]}, 2),
        ("resize", {"name": "nobody", "size": MIB}, 2),
        ("delete", {"names": "a"}, -32602),
        ("delete", {"names": ["nobody"]}, 2),
        ("rename", {"old": "nobody", "new": "n"}, 2),
        ("rollback", {"name": "nobody", "snapshot": "n"}, 2),
        ("set", {"settings": {"nonsense": 1}}, 1),
        ("set", {"settings": {"low_water": 101}}, 1),
        ("set", {"settings": {"low_water": [1]}}, -32602),
        ("grow", {"size": 0}, 1),
        ("grow", {"size": 512}, 1),
        ("grow", {"size": 1 << 62}, 1),
        ("nonsense", {}, -32601),
    ],
)
def test_bad_input_is_refused_here_too(
    running: PoolRig, method: str, params: dict[str, object], code: int
) -> None:
    with running.rpc() as rpc:
        with pytest.raises(RpcError) as refusal:
            rpc.call(method, **params)
        assert refusal.value.code == code, refusal.value
        assert "\n" not in refusal.value.message
        assert "n" not in {one["name"] for one in rpc.call("list")["volumes"]}


def test_garbage_gets_errors_and_the_pool_goes_on(running: PoolRig, seed: int) -> None:
    dice = random.Random(seed)
    with running.rpc() as good, running.rpc() as bad:
        for _ in range(100):
            line = dice.randbytes(dice.randrange(1, 200)).replace(b"\n", b"")
            bad.send_raw(line + b"\n")
            assert "error" in bad.receive()
        bad.send_raw(b"[" * 200_000 + b"\n")
        assert bad.receive()["error"]["code"] == -32700
        bad.send_raw(b"x" * (5 << 20) + b"\n")
        assert bad.receive()["error"]["code"] == -32600
        assert bad.call("list") == good.call("list")


def test_half_open_and_silent_clients(running: PoolRig) -> None:
    path = running.status()["control_socket"]
    silent = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    try:
        for client in silent:
            client.connect(path)
            client.send(b'{"jsonrpc": "2.0", ')
        assert running.json("list")
        with socket.socket(socket.AF_UNIX) as half:
            half.connect(path)
            half.sendall(b'{"jsonrpc":"2.0","id":1,"method":"get"}\n')
            half.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := half.recv(65536):
                answer += piece
        assert json.loads(answer)["result"] == running.json("get")
    finally:
        for client in silent:
            client.close()
    assert running.json("list")
