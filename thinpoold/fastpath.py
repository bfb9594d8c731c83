"""The C filter of plugins/fastpath: which file it is, whether it suits, and whether to use it.

nbdkit's interface to filters changes with every version of nbdkit, and the filter's to Python with
this package. So a filter says in its file what it was built for, and one that was built for
something else is not loaded: the pool is served without it, and `status` says why.

Thread-safety: no state.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from thinpoold.errors import ThinPoolError, UserError

MODES: Final = ("auto", "on", "off")
# One of the above, or the path of another filter, for those who work on it.
VARIABLE: Final = "THINPOOL_FASTPATH"

# What fastlib.py calls; plugins/fastpath/filter.c has the same.
INTERFACE: Final = 1
_NAME: Final = "thinpoold-fastpath.so"
_BUILT_FOR: Final = re.compile(rb"thinpoold-fastpath interface=(\d+) nbdkit=([^;\0]{1,64});")


@dataclass(frozen=True, slots=True)
class Choice:
    """The filter to use, or the reason why there is none."""

    filter: Path | None
    reason: str = ""


class Unsuitable(ThinPoolError):  # noqa: N818 - a state, not a mistake
    """There is no filter, or not one for this nbdkit and this thinpoold."""


def choose(wanted: str | None, script: Path, nbdkit: str) -> Choice:
    """Return the filter for nbdkit of version `nbdkit`, as `wanted` or the environment says.

    `script` is nbdkit's script, which the filter lies beside. Raises `UserError` for a mode that is
    none, `Unsuitable` when the filter is wanted but there is none.
    """
    mode = wanted or os.environ.get(VARIABLE) or "auto"
    if mode == "off":
        return Choice(None, "switched off")
    given = "/" in mode
    if mode not in MODES and not given:
        raise UserError(f"{VARIABLE} cannot be {mode!r}: it is {', '.join(MODES)} or a path")
    path = Path(mode).absolute() if given else place(script)
    try:
        check(path, nbdkit)
    except Unsuitable as error:
        if mode != "auto":
            raise
        return Choice(None, str(error))
    return Choice(path)


def place(script: Path) -> Path:
    """Return where the filter is, once it was built, that goes with nbdkit's script."""
    return script.parent / "fastpath" / "build" / _NAME


def how_to_build(script: Path) -> str:
    """Return the command that builds it."""
    # The files may be no newer than what it was built for.
    again = "-B " if place(script).exists() else ""
    return f"make {again}-C {place(script).parent.parent}"


def check(path: Path, nbdkit: str) -> None:
    """Raise `Unsuitable` unless `path` is a filter for this thinpoold and that nbdkit."""
    try:
        built = built_for(path)
    except FileNotFoundError:
        raise Unsuitable(f"{path} was not built: 'make -C {path.parent.parent}' does it") from None
    except OSError as error:
        raise Unsuitable(f"{path}: {error.strerror}") from None
    if built is None:
        raise Unsuitable(f"{path} is no filter of thinpoold's")
    interface, version = built
    again = f"build it again with 'make -B -C {path.parent.parent}'"
    if interface != INTERFACE:
        raise Unsuitable(f"{path} was built for another version of thinpoold: {again}")
    if version != nbdkit:
        raise Unsuitable(f"{path} was built for nbdkit {version}, and this is {nbdkit}: {again}")


def built_for(path: Path) -> tuple[int, str] | None:
    """Return the interface and the version of nbdkit that a filter's file names, None for neither.

    Read, not run: code that may not suit has no business here. Raises OSError.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            match = _BUILT_FOR.search(content)
            return (int(match[1]), match[2].decode("ascii", "replace")) if match else None
