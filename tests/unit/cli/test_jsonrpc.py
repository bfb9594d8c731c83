"""JSON-RPC 2.0: what is understood, what is refused with which code, and that nothing raises."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.control import jsonrpc
from thinpoold.control.jsonrpc import Request, RpcError


def one(line: str | bytes) -> Request | RpcError:
    message = jsonrpc.parse(line.encode() if isinstance(line, str) else line)
    assert not message.batch
    assert len(message.calls) == 1
    return message.calls[0]


def test_a_request() -> None:
    line = '{"jsonrpc":"2.0","method":"m","params":{"a":1},"id":7}'
    assert one(line) == Request("m", {"a": 1}, 7, notification=False)


def test_params_may_be_left_out_or_in_order() -> None:
    assert one('{"jsonrpc":"2.0","method":"m","id":"x"}') == Request("m", {}, "x")
    assert one('{"jsonrpc":"2.0","method":"m","id":null,"params":[1]}') == Request("m", [1], None)


def test_a_notification_has_no_id() -> None:
    call = one('{"jsonrpc":"2.0","method":"m"}')
    assert isinstance(call, Request)
    assert call.notification


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b"", jsonrpc.PARSE_ERROR, "not JSON"),
        (b"{", jsonrpc.PARSE_ERROR, "not JSON"),
        (b"\xff\xfe", jsonrpc.PARSE_ERROR, "not UTF-8"),
        (b"[" * 100_000, jsonrpc.PARSE_ERROR, "not JSON"),
        (b'{"a":' * 100_000, jsonrpc.PARSE_ERROR, "nested too deeply"),
        (b"9" * 100_000, jsonrpc.PARSE_ERROR, "not JSON"),
        (b"NaN", jsonrpc.PARSE_ERROR, "NaN"),
        (b"-Infinity", jsonrpc.PARSE_ERROR, "Infinity"),
        (b"1e999", jsonrpc.PARSE_ERROR, "too large"),
        (b'{"a":1,"a":2}', jsonrpc.PARSE_ERROR, "twice"),
        (b"{} {}", jsonrpc.PARSE_ERROR, "Extra data"),
        (b"null", jsonrpc.INVALID_REQUEST, "a JSON object"),
        (b'"text"', jsonrpc.INVALID_REQUEST, "a JSON object"),
        (b"[]", jsonrpc.INVALID_REQUEST, "empty batch"),
        (b"[" + b"1," * 100 + b"1]", jsonrpc.INVALID_REQUEST, "over 100"),
        (b"{}", jsonrpc.INVALID_REQUEST, "jsonrpc"),
        (b'{"jsonrpc":2.0,"method":"m"}', jsonrpc.INVALID_REQUEST, "jsonrpc"),
        (b'{"jsonrpc":"2.0"}', jsonrpc.INVALID_REQUEST, "method"),
        (b'{"jsonrpc":"2.0","method":1}', jsonrpc.INVALID_REQUEST, "method"),
        (b'{"jsonrpc":"2.0","method":"m","params":1}', jsonrpc.INVALID_REQUEST, "params"),
        (b'{"jsonrpc":"2.0","method":"m","params":null}', jsonrpc.INVALID_REQUEST, "params"),
        (b'{"jsonrpc":"2.0","method":"m","id":true}', jsonrpc.INVALID_REQUEST, "id"),
        (b'{"jsonrpc":"2.0","method":"m","id":[1]}', jsonrpc.INVALID_REQUEST, "id"),
    ],
)
def test_nonsense_is_an_error(line: bytes, code: int, word: str) -> None:
    call = one(line)
    assert isinstance(call, RpcError)
    assert call.code == code
    assert word in call.message
    assert len(call.message) < 200


def test_an_error_keeps_the_id_where_it_could_be_read() -> None:
    call = one('{"jsonrpc":"2.0","id":"seven"}')
    assert isinstance(call, RpcError)
    assert call.request_id == "seven"


def test_a_batch_is_its_calls_in_order() -> None:
    message = jsonrpc.parse(b'[{"jsonrpc":"2.0","method":"a","id":1},5]')
    assert message.batch
    first, second = message.calls
    assert isinstance(first, Request)
    assert isinstance(second, RpcError)


@given(st.binary())
def test_any_bytes_are_a_message(line: bytes) -> None:
    for call in jsonrpc.parse(line).calls:
        if isinstance(call, RpcError):
            jsonrpc.encode_error(call)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(
    st.dictionaries(
        st.sampled_from(["jsonrpc", "method", "params", "id", "x"]),
        st.just("2.0") | json_values,
    )
)
def test_any_object_is_a_message(document: dict[str, Any]) -> None:
    (call,) = jsonrpc.parse(json.dumps(document).encode()).calls
    if isinstance(call, RpcError):
        assert b"\n" not in jsonrpc.encode_error(call)


@given(json_values)
def test_a_result_is_one_ascii_line_and_read_back(value: Any) -> None:
    try:
        line = jsonrpc.join([jsonrpc.encode_result(3, value)], batch=False)
    except ValueError:
        return  # Infinity is no JSON.
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert jsonrpc.parse_response(line, 3) == value


def test_a_response_to_something_else_is_refused() -> None:
    line = jsonrpc.encode_result(3, {})
    with pytest.raises(ValueError, match="something else"):
        jsonrpc.parse_response(line, 4)
    for nonsense in (b"{}", b"[]", b'{"jsonrpc":"2.0","error":{},"id":4}', b"x"):
        with pytest.raises(ValueError, match=r"."):
            jsonrpc.parse_response(nonsense, 4)


def test_an_error_response_raises_it() -> None:
    line = jsonrpc.encode_error(RpcError(4, "in use", {"type": "VolumeInUse"}, 9))
    with pytest.raises(RpcError) as raised:
        jsonrpc.parse_response(line, 9)
    assert (raised.value.code, raised.value.message) == (4, "in use")
    assert raised.value.data == {"type": "VolumeInUse"}


def test_join() -> None:
    assert jsonrpc.join([], batch=True) == b""
    assert jsonrpc.join([b"1"], batch=True) == b"[1]\n"
    assert jsonrpc.join([b"1", b"2"], batch=True) == b"[1,2]\n"
