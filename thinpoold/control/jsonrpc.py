"""JSON-RPC 2.0 as values: lines in, requests or errors out, and back.

Pure: no socket, no pool. Whatever bytes come in, `parse` returns; it never raises.

Invariants

1. One line is one message: a request, or a batch (a JSON array) of them.
2. A message that cannot be understood becomes an `RpcError` with the id where one could be read.
3. What goes out is ASCII without a line feed in it, so a line is always one message.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

VERSION = "2.0"

# The longest message taken or sent as a request, in bytes, its line feed included.
MAX_LINE = 1 << 20
MAX_BATCH = 100

# The codes that JSON-RPC 2.0 fixes.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

Json: TypeAlias = Any
Id: TypeAlias = str | int | float | None


class RpcError(Exception):
    """An error as the protocol carries it. `data` is JSON, or None for none."""

    def __init__(self, code: int, message: str, data: Json = None, request_id: Id = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.request_id = request_id


@dataclass(frozen=True)
class Request:
    """A well-formed call. A notification wants no answer, not even an error."""

    method: str
    params: dict[str, Json] | list[Json]
    id: Id = None
    notification: bool = False


@dataclass(frozen=True)
class Message:
    """One line: its calls in order, and whether they came (and are answered) as a batch."""

    calls: tuple[Request | RpcError, ...]
    batch: bool


def parse(line: bytes) -> Message:
    """Return what one line asks for."""
    try:
        document = decode(line)
    except ValueError as error:
        return Message((RpcError(PARSE_ERROR, f"not JSON: {error}"),), batch=False)
    if not isinstance(document, list):
        return Message((_request(document),), batch=False)
    if not document:
        return Message((RpcError(INVALID_REQUEST, "an empty batch"),), batch=False)
    if len(document) > MAX_BATCH:
        return Message((RpcError(INVALID_REQUEST, f"over {MAX_BATCH} calls in a batch"),), False)
    return Message(tuple(_request(item) for item in document), batch=True)


def decode(line: bytes, kind: type[dict[str, Json]] = dict) -> Json:
    """Return the JSON document of a line; raise ValueError with a short reason if it is none.

    Stricter than the json module where that takes what JSON is not: NaN and infinities, and one
    key twice in an object. Objects become dictionaries of this kind.
    """

    def object_of(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        result = kind(pairs)
        if len(result) != len(pairs):
            raise ValueError("one key twice in an object")
        return result

    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=object_of
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return value


def _request(document: Json) -> Request | RpcError:
    if not isinstance(document, dict):
        return RpcError(INVALID_REQUEST, "a request is a JSON object")
    request_id = document.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | float | None):
        return RpcError(INVALID_REQUEST, "id must be a string, a number or null")
    if document.get("jsonrpc") != VERSION:
        return RpcError(INVALID_REQUEST, 'jsonrpc must be "2.0"', request_id=request_id)
    method = document.get("method")
    if not isinstance(method, str):
        return RpcError(INVALID_REQUEST, "method must be a string", request_id=request_id)
    params = document.get("params", {})
    if not isinstance(params, dict | list):
        return RpcError(INVALID_REQUEST, "params must be an object or an array", None, request_id)
    return Request(method, params, request_id, notification="id" not in document)


def encode_request(method: str, params: dict[str, Json], request_id: int) -> bytes:
    """Return the line of a call."""
    document = {"jsonrpc": VERSION, "method": method, "params": params, "id": request_id}
    return _encode(document) + b"\n"


def encode_result(request_id: Id, result: Json) -> bytes:
    """Return the response that carries a result.

    Raises ValueError or TypeError for a result that is no JSON.
    """
    return _encode({"jsonrpc": VERSION, "result": result, "id": request_id})


def encode_error(error: RpcError) -> bytes:
    """Return the response that carries an error."""
    body: dict[str, Json] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return _encode({"jsonrpc": VERSION, "error": body, "id": error.request_id})


def join(responses: list[bytes], batch: bool) -> bytes:
    """Return the line that answers a message, or nothing when nothing in it wants an answer."""
    if not responses:
        return b""
    return b"[" + b",".join(responses) + b"]\n" if batch else responses[0] + b"\n"


def parse_response(line: bytes, request_id: int, kind: type[dict[str, Json]] = dict) -> Json:
    """Return the result in a response to `request_id`, its objects dictionaries of this kind.

    Raises RpcError when the response carries one, ValueError when it is no response to it.
    """
    document = decode(line, kind)
    if not isinstance(document, dict) or document.get("jsonrpc") != VERSION:
        raise ValueError("no JSON-RPC 2.0 response")
    error = document.get("error")
    if isinstance(error, dict):
        code, message = error.get("code"), error.get("message")
        if not isinstance(code, int) or not isinstance(message, str):
            raise ValueError("an error without code and message")
        raise RpcError(code, message, error.get("data"), document.get("id"))
    if document.get("id") != request_id or "result" not in document:
        raise ValueError("a response to something else")
    return document["result"]


def _encode(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
