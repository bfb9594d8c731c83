"""Methods behind the control socket: parameters checked, errors with codes, and none waits for
another."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold import errors
from thinpoold.control import codes, dispatch, jsonrpc, params
from thinpoold.control.dispatch import Dispatcher
from thinpoold.control.jsonrpc import RpcError
from thinpoold.control.methods import METHODS, Host, Method, Params, Result
from thinpoold.control.params import BYTES, FLAG, PAIRS, SETTINGS, TEXT, TEXTS, Param


@dataclass
class FakeHost:
    """A host without a pool."""

    pool: Any = None
    server_uri: str = "nbd+unix:///?socket=/s"
    stopped: bool = False
    answers_in_turn: bool = False
    threads: int = 0

    def run_facts(self) -> dict[str, Any]:
        return {"running": True, "pid": 7, "uri": self.server_uri, "control_socket": "/c"}

    def stop(self) -> None:
        self.stopped = True


def fail(host: Host, given: Params) -> Result:
    raise {
        "in-use": errors.VolumeInUse("disk is in use"),
        "bug": ZeroDivisionError("x\ny"),
        "os": OSError(28, "No space left on device", "/pool/data"),
    }[given["how"]]


TABLE = {
    method.name: method
    for method in (
        Method("echo", "", "", lambda host, given: dict(given), (Param("text", TEXT, "", "none"),)),
        Method("fail", "", "", fail, (Param("how", TEXT, ""),)),
        Method("nonsense", "", "", lambda host, given: {"no JSON": object()}),
    )
}


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    monkeypatch.setattr(dispatch, "METHODS", TABLE)
    return Dispatcher(FakeHost())


def ask(dispatcher: Dispatcher, method: str, given: Any = None, **more: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": given or {}, **more}
    return json.loads(dispatcher.answer(json.dumps(request).encode()))


def test_a_result_comes_with_the_id(dispatcher: Dispatcher) -> None:
    answer = ask(dispatcher, "echo", {"text": "ü"}, id="x")
    assert answer == {"jsonrpc": "2.0", "id": "x", "result": {"text": "ü"}}


def test_parameters_in_order_and_left_out(dispatcher: Dispatcher) -> None:
    assert ask(dispatcher, "echo", ["a"])["result"] == {"text": "a"}
    assert ask(dispatcher, "echo")["result"] == {"text": "none"}


@pytest.mark.parametrize(
    ("method", "given", "code", "word"),
    [
        ("no", {}, jsonrpc.METHOD_NOT_FOUND, "no method 'no'"),
        ("echo", {"other": 1}, jsonrpc.INVALID_PARAMS, "no parameter 'other'; there are: text"),
        ("echo", {"text": 1}, jsonrpc.INVALID_PARAMS, "'text' must be a string"),
        ("echo", ["a", "b"], jsonrpc.INVALID_PARAMS, "at most 1"),
        ("fail", {}, jsonrpc.INVALID_PARAMS, "'how' is missing"),
        ("fail", {"how": "in-use"}, 4, "disk is in use"),
        ("fail", {"how": "os"}, 7, "/pool/data: No space left on device"),
        ("fail", {"how": "bug"}, jsonrpc.INTERNAL_ERROR, "internal error: x y"),
        ("nonsense", {}, jsonrpc.INTERNAL_ERROR, "internal error"),
    ],
)
def test_errors(dispatcher: Dispatcher, method: str, given: Any, code: int, word: str) -> None:
    answer = ask(dispatcher, method, given)
    assert answer["id"] == 1
    assert answer["error"]["code"] == code
    assert word in answer["error"]["message"]


def test_the_class_is_told(dispatcher: Dispatcher) -> None:
    assert ask(dispatcher, "fail", {"how": "in-use"})["error"]["data"] == {"type": "VolumeInUse"}


def test_notifications_get_no_answer(dispatcher: Dispatcher) -> None:
    for method in ("echo", "fail", "no"):
        line = json.dumps({"jsonrpc": "2.0", "method": method}).encode()
        assert dispatcher.answer(line) == b""


def test_a_batch_is_answered_as_one(dispatcher: Dispatcher) -> None:
    calls = [
        {"jsonrpc": "2.0", "method": "echo", "id": 1},
        {"jsonrpc": "2.0", "method": "echo"},
        5,
        {"jsonrpc": "2.0", "method": "no", "id": 2},
    ]
    answers = json.loads(dispatcher.answer(json.dumps(calls).encode()))
    assert [answer["id"] for answer in answers] == [1, None, 2]


@given(st.binary() | st.text().map(str.encode))
def test_whatever_comes_is_answered_with_one_line(line: bytes) -> None:
    answer = Dispatcher(FakeHost()).answer(line)
    assert answer.endswith(b"\n")
    assert answer.count(b"\n") == 1
    json.loads(answer)


def test_no_method_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a look and not a change for a change that waits, for whatever that may be."""
    waiting, leave = threading.Event(), threading.Event()

    def wait(host: Host, given: Params) -> Result:
        waiting.set()
        assert leave.wait(60)
        return {"waited": True}

    table = {
        "wait": Method("wait", "", "", wait, changes=True),
        "change": Method("change", "", "", lambda host, given: {"changed": True}, changes=True),
        "look": Method("look", "", "", lambda host, given: {}),
    }
    monkeypatch.setattr(dispatch, "METHODS", table)
    dispatcher = Dispatcher(FakeHost())
    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(dispatcher.call, "wait", {}) for _ in range(3)]
        try:
            assert waiting.wait(60)
            assert dispatcher.call("change", {}) == {"changed": True}
            assert dispatcher.call("look", {}) == {}
            assert not any(answer.done() for answer in answers)
        finally:
            leave.set()
        assert [answer.result() for answer in answers] == [{"waited": True}] * 3


KINDS: dict[params.Kind, list[Any]] = {
    TEXT: ["", "a"],
    BYTES: [0, -1, 1 << 62],
    FLAG: [True, False],
    TEXTS: [["a"], ["a", ""]],
    PAIRS: [[["a", "b"]], [["a", "b"], ["c", "d"]]],
    SETTINGS: [{"a": 1}, {"a": "x", "b": True}],
}
NEVER: list[Any] = [
    None,
    1.5,
    [],
    {},
    [[]],
    [1],
    [["a"]],
    [["a", 1]],
    [["a", "b", "c"]],
    {"a": None},
    1 << 64,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_each_kind_takes_its_own_values_only(kind: params.Kind) -> None:
    for value in NEVER:
        assert not kind.accepts(value), value
    for other, values in KINDS.items():
        for value in values:
            overlap = kind is TEXTS and other is TEXTS
            assert kind.accepts(value) == (kind is other or overlap), value


def test_bind_says_which_there_are() -> None:
    with pytest.raises(RpcError, match="there are: none"):
        params.bind((), {"x": 1})


def exceptions() -> Iterator[Exception]:
    for name in dir(errors):
        value = getattr(errors, name)
        if isinstance(value, type) and issubclass(value, errors.ThinPoolError):
            yield value("one\nline")


@pytest.mark.parametrize("error", list(exceptions()), ids=lambda error: type(error).__name__)
def test_every_exception_that_is_meant_has_a_code(error: Exception) -> None:
    rpc = codes.to_rpc(error)
    assert rpc.code > 0
    assert rpc.message == "one line"
    back = codes.from_rpc(rpc)
    assert (back.code, str(back), back.exit_status) == (rpc.code, "one line", 1)


def test_codes_are_told_apart() -> None:
    numbers = [code.number for code in codes.CODES]
    assert len(set(numbers)) == len(numbers)
    names = [name for code in codes.CODES for name in code.types]
    assert len(set(names)) == len(names)


def test_every_method_is_documented() -> None:
    for method in METHODS.values():
        assert method.doc.split("\n")[0].endswith(".")
        assert method.returns
        assert all(param.doc for param in method.params)


@dataclass
class FakePool:
    """A pool that can only commit, or not even that."""

    error: Exception | None = None

    def commit(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "told"), [(None, None), (errors.DeviceError("no\nspace"), "no space")]
)
def test_stop_answers_and_stops(error: Exception | None, told: str | None) -> None:
    host = FakeHost(FakePool(error))
    answer = Dispatcher(host).call("stop", {})
    assert answer == {"stopping": True, "pid": 7, "error": told}
    assert host.stopped
