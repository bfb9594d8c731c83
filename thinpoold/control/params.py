"""The types that parameters of control methods have, and the check of what a client sent.

Pure. A parameter's type is checked here and nothing else: whether a name or a size keeps the rules
is the business of the method, whoever calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from thinpoold.control.jsonrpc import INVALID_PARAMS, Json, RpcError

# What an integer of JSON is everywhere.
LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Kind:
    """One type: how the documentation calls it, and whether a JSON value is of it."""

    title: str
    accepts: Callable[[Json], bool]


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_bytes(value: Json) -> bool:
    # bool is an int to Python, and never a size.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_flag(value: Json) -> bool:
    return isinstance(value, bool)


def _is_texts(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_processes(value: Json) -> bool:
    return isinstance(value, list) and all(_is_bytes(item) and item > 0 for item in value)


def _is_pairs(value: Json) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(_is_texts(item) and len(item) == 2 for item in value)
    )


def _is_settings(value: Json) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(item, str | int | bool) for item in value.values())
    )


TEXT = Kind("a string", _is_text)
TEXT_OR_NULL = Kind("a string or null", lambda value: value is None or _is_text(value))
BYTES = Kind("an integer, bytes", _is_bytes)
FLAG = Kind("true or false", _is_flag)
TEXTS = Kind("an array of one or more strings", _is_texts)
PROCESSES = Kind("an array of process ids", _is_processes)
PAIRS = Kind("an array of one or more arrays of two strings", _is_pairs)
SETTINGS = Kind("an object of one or more settings (strings, integers, booleans)", _is_settings)


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


@dataclass(frozen=True)
class Param:
    """One parameter. `default` is what it is when left out, or REQUIRED."""

    name: str
    kind: Kind
    doc: str
    default: Json = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def bind(params: tuple[Param, ...], given: dict[str, Json] | list[Json]) -> dict[str, Json]:
    """Return the value of every parameter, from what a client gave by name or in order.

    Raises RpcError(INVALID_PARAMS) for one that is missing, unknown or of another type.
    """
    if isinstance(given, list):
        if len(given) > len(params):
            raise RpcError(INVALID_PARAMS, f"at most {len(params)} parameters, not {len(given)}")
        given = {param.name: value for param, value in zip(params, given, strict=False)}
    known = {param.name for param in params}
    for name in given:
        if name not in known:
            choice = ", ".join(param.name for param in params) or "none"
            raise RpcError(INVALID_PARAMS, f"no parameter {name[:40]!r}; there are: {choice}")
    return {param.name: _value(param, given) for param in params}


def _value(param: Param, given: dict[str, Json]) -> Json:
    if param.name not in given:
        if param.required:
            raise RpcError(INVALID_PARAMS, f"parameter {param.name!r} is missing")
        return param.default
    value = given[param.name]
    if not param.kind.accepts(value):
        raise RpcError(INVALID_PARAMS, f"parameter {param.name!r} must be {param.kind.title}")
    return value
