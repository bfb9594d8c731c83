"""The control socket against clients that misbehave: each gets an error, the others go on."""

import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from thinpoold import waiting
from thinpoold.control import jsonrpc
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import RemoteError
from thinpoold.control.jsonrpc import MAX_LINE
from thinpoold.control.server import ControlServer
from thinpoold.errors import ControlError, PoolNotRunning

PATIENCE = 60.0


class Hold:
    """Holds up the request `hold` until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()


def answer_with(hold: Hold) -> Callable[[bytes], bytes]:
    def answer(line: bytes) -> bytes:
        message = jsonrpc.parse(line)
        (call,) = message.calls
        if isinstance(call, jsonrpc.RpcError):
            return jsonrpc.encode_error(call) + b"\n"
        if call.method == "hold":
            hold.entered.set()
            assert hold.leave.wait(PATIENCE)
        if call.method == "crash":
            raise ZeroDivisionError
        if call.method == "large":
            return jsonrpc.encode_result(call.id, "x" * (8 << 20)) + b"\n"
        return jsonrpc.encode_result(call.id, call.params) + b"\n"

    return answer


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "control.sock"


@pytest.fixture
def server(path: Path, hold: Hold) -> Iterator[ControlServer]:
    server = ControlServer(path, answer_with(hold), max_connections=4, send_timeout=PATIENCE)
    server.start()
    yield server
    hold.leave.set()
    server.close()


class Raw:
    """A client that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Any:
        line = self.lines.readline()
        return json.loads(line) if line else None


def request(method: str = "echo", request_id: int = 1) -> bytes:
    return jsonrpc.encode_request(method, {"a": 1}, request_id)


def assert_serves(path: Path) -> None:
    with ControlClient.connect(path) as client:
        assert client.call("echo", {"a": 1}) == {"a": 1}


@pytest.mark.usefixtures("server")
def test_only_the_owner_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("server")
def test_garbage_gets_an_error_and_the_connection_goes_on(path: Path) -> None:
    with Raw(path) as raw:
        for line in (b"", b"garbage", b"\xff\x00\xfe", b"[[[", b'{"jsonrpc":"2.0","id":1}'):
            raw.send(line + b"\n")
            assert raw.receive()["error"]["code"] in (
                jsonrpc.PARSE_ERROR,
                jsonrpc.INVALID_REQUEST,
            )
        raw.send(request())
        assert raw.receive()["result"] == {"a": 1}


@pytest.mark.usefixtures("server")
def test_an_oversized_line_is_refused_once_and_skipped(path: Path) -> None:
    with Raw(path) as raw:
        raw.send(b"x" * (3 * MAX_LINE) + b"\n" + request())
        refusal = raw.receive()
        assert refusal["error"]["code"] == jsonrpc.INVALID_REQUEST
        assert str(MAX_LINE) in refusal["error"]["message"]
        assert refusal["id"] is None
        assert raw.receive()["result"] == {"a": 1}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_longest_line(path: Path, extra: int) -> None:
    text = request().rstrip(b"\n")
    line = text + b" " * (MAX_LINE - 1 - len(text) + extra) + b"\n"
    with Raw(path) as raw:
        raw.send(line)
        assert ("result" in raw.receive()) == (extra <= 0)
        raw.send(request())
        assert "result" in raw.receive()


@pytest.mark.usefixtures("server")
def test_requests_may_come_in_pieces_and_together(path: Path) -> None:
    with Raw(path) as raw:
        for byte in request(request_id=1):
            raw.send(bytes([byte]))
        assert raw.receive()["id"] == 1
        raw.send(b"".join(request(request_id=number) for number in range(50)))
        assert [raw.receive()["id"] for _ in range(50)] == list(range(50))


@pytest.mark.usefixtures("server")
def test_a_half_open_connection_is_answered_and_closed(path: Path) -> None:
    with Raw(path) as raw:
        raw.send(request(request_id=1) + request(request_id=2).rstrip(b"\n"))
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.receive()["id"] == 1
        assert raw.receive()["id"] == 2
        assert raw.receive() is None


@pytest.mark.usefixtures("server")
def test_a_client_that_leaves_early_disturbs_nobody(path: Path) -> None:
    for sent in (b"", b"half a li", request("large"), b"x" * (2 * MAX_LINE)):
        with Raw(path) as raw:
            raw.send(sent)
        assert_serves(path)


@pytest.mark.usefixtures("server")
def test_a_bug_in_a_method_ends_one_connection_alone(path: Path) -> None:
    with Raw(path) as other, Raw(path) as raw:
        raw.send(request("crash"))
        assert raw.receive() is None
        other.send(request())
        assert "result" in other.receive()


def test_a_slow_request_holds_up_nobody(path: Path, server: ControlServer, hold: Hold) -> None:
    with Raw(path) as slow:
        slow.send(request("hold"))
        assert hold.entered.wait(PATIENCE)
        assert_serves(path)
        hold.leave.set()
        assert "result" in slow.receive()


def test_the_longest_idle_makes_room(path: Path, server: ControlServer, hold: Hold) -> None:
    with Raw(path) as busy, Raw(path) as oldest, Raw(path) as idle, Raw(path) as young:
        busy.send(request("hold"))
        assert hold.entered.wait(PATIENCE)
        for client in (oldest, idle, young):
            client.send(request())
            assert "result" in client.receive()
        # A client has its answer a moment before its connection counts as idle again.
        while sum(connection.busy for connection in server._connections) > 1:
            time.sleep(0.001)
        with Raw(path) as fifth:
            fifth.send(request())
            assert "result" in fifth.receive()
            assert oldest.receive() is None
            idle.send(request())
            assert "result" in idle.receive()
        hold.leave.set()
        assert "result" in busy.receive()


def test_when_all_are_busy_the_newcomer_is_told(path: Path, hold: Hold) -> None:
    server = ControlServer(path, answer_with(hold), max_connections=1)
    server.start()
    try:
        with Raw(path) as busy:
            busy.send(request("hold"))
            assert hold.entered.wait(PATIENCE)
            with Raw(path) as newcomer:
                assert "busy" in newcomer.receive()["error"]["message"]
                assert newcomer.receive() is None
            hold.leave.set()
            assert "result" in busy.receive()
    finally:
        hold.leave.set()
        server.close()


def test_without_a_thread_for_a_client_the_next_is_served(
    path: Path, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with Raw(path) as unlucky:
            assert "no thread" in unlucky.receive()["error"]["message"]
            assert unlucky.receive() is None
    assert_serves(path)


def test_a_client_that_does_not_read_is_dropped(path: Path, hold: Hold) -> None:
    server = ControlServer(path, answer_with(hold), send_timeout=0.01)
    server.start()
    try:
        with Raw(path) as deaf:
            deaf.send(request("large"))
            assert_serves(path)
            # Not a byte before the server has hung up: reading may be quicker than its time-out.
            hung_up = select.poll()
            hung_up.register(deaf.socket, 0)
            assert hung_up.poll(PATIENCE * 1000) == [(deaf.socket.fileno(), select.POLLHUP)]
            received = b""
            while piece := deaf.socket.recv(1 << 20):
                received += piece
            assert not received.endswith(b"\n")
    finally:
        server.close()


def test_close_answers_what_is_under_way(path: Path, hold: Hold) -> None:
    server = ControlServer(path, answer_with(hold))
    server.start()
    with Raw(path) as busy, Raw(path) as idle:
        busy.send(request("hold"))
        assert hold.entered.wait(PATIENCE)
        closer = threading.Thread(target=server.close)
        closer.start()
        assert idle.receive() is None
        assert not path.exists()
        hold.leave.set()
        assert "result" in busy.receive()
        closer.join()
    server.close()
    with pytest.raises(PoolNotRunning):
        ControlClient.connect(path)


def test_a_stale_socket_is_replaced(path: Path, hold: Hold) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = ControlServer(path, answer_with(hold))
    server.start()
    assert_serves(path)
    server.close()


def test_nobody_there(path: Path) -> None:
    with pytest.raises(PoolNotRunning, match="thinpool start"):
        ControlClient.connect(path)
    path.touch()
    with pytest.raises(PoolNotRunning):
        ControlClient.connect(path)
    with pytest.raises(ControlError):
        ControlClient.connect(path.parent / ("x" * 200))


@pytest.mark.usefixtures("server")
def test_an_error_comes_back_as_an_exception(path: Path) -> None:
    with ControlClient.connect(path) as client:
        client._peer.sendall(b"x\n")
        with pytest.raises(RemoteError, match="not JSON"):
            client.call("echo")


@pytest.mark.parametrize("answer", [b"", b"x\n", b'{"jsonrpc":"2.0","result":1,"id":99}\n', b"hal"])
def test_nonsense_from_the_daemon_is_an_error(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ControlClient.connect(path) as client, pytest.raises(ControlError):
            client.call("echo")
        thread.join()


def test_a_daemon_that_does_not_answer_is_not_waited_for_for_ever(path: Path, hold: Hold) -> None:
    server = ControlServer(path, answer_with(hold))
    server.start()
    try:
        with (
            ControlClient.connect(path, timeout=0.05) as client,
            pytest.raises(ControlError, match=f"process {os.getpid()}, does not answer"),
        ):
            client.call("hold")
    finally:
        hold.leave.set()
        server.close()


def test_it_is_said_who_is_waited_for(
    path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "AFTER", 0.0)
    server = ControlServer(path, answer_with(hold))
    server.start()
    with ControlClient.connect(path) as client, ThreadPoolExecutor(1) as other:
        answer = other.submit(client.call, "hold")
        assert hold.entered.wait(PATIENCE)
        said = ""
        while "\n" not in said:
            said += capsys.readouterr().err
        hold.leave.set()
        answer.result()
    server.close()
    assert said == (
        f"thinpool: waiting for the pool's daemon, process {os.getpid()}, to answer 'hold'; "
        "until it does\n"
    )
