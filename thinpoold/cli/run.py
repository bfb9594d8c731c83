"""Runs a command and turns whatever comes out of it into one line on stderr and an exit status.

The one place that does. 0 is done, 1 refused or failed, 2 wrong usage; 130 for an interrupt and
141 for a reader that went away, as shells have it. THINPOOL_DEBUG=1 shows tracebacks.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from thinpoold.cli import output, streams
from thinpoold.control.codes import CODES, one_line
from thinpoold.errors import DONE, REFUSED, USAGE

INTERRUPTED = 130
PIPE_CLOSED = 141

_MEANT = frozenset(name for code in CODES for name in code.types)


def run(command: click.Command, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command with `argv`, or the process's, and exit."""
    name = command.name or "thinpool"
    streams.fill()
    # Names may be any UTF-8; what a terminal cannot show must not become a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(command, name, argv)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        broken = isinstance(error, BrokenPipeError)
        status = PIPE_CLOSED if broken else _fail(name, one_line(output.unwritten(error)), REFUSED)
    sys.exit(status)


def _run(command: click.Command, name: str, argv: Sequence[str] | None) -> int:
    try:
        arguments = list(argv) if argv is not None else None
        outcome = command.main(arguments, prog_name=name, standalone_mode=False)
        return outcome if isinstance(outcome, int) else DONE
    except BrokenPipeError:
        raise
    except click.exceptions.NoArgsIsHelpError as error:
        output.message(error.format_message())
        return USAGE
    except click.UsageError as error:
        _debug()
        return _fail(name, usage_line(error, name), USAGE)
    except click.ClickException as error:
        _debug()
        return _fail(name, error.format_message(), REFUSED)
    except (click.Abort, KeyboardInterrupt):
        return _fail(name, "interrupted", INTERRUPTED)
    except Exception as error:
        _debug()
        return _fail(name, _line(error), getattr(error, "exit_status", REFUSED))


def usage_line(error: click.UsageError, name: str) -> str:
    """Return what is wrong with a command line, and where to read how it should be."""
    path = error.ctx.command_path if error.ctx is not None else name
    verb = path.removeprefix(name).strip()
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    return f"{verb + ': ' if verb else ''}{message}; see '{path} --help'"


def _line(error: Exception) -> str:
    bases = {base.__name__ for base in type(error).__mro__}
    if _MEANT.isdisjoint(bases):
        return (
            f"internal error: {type(error).__name__}: {one_line(error)}; "
            "set THINPOOL_DEBUG=1 for where, and report it"
        )
    return one_line(error)


def _fail(name: str, line: str, status: int) -> int:
    output.message(f"{name}: {line}")
    return status


def _debug() -> None:
    if os.environ.get("THINPOOL_DEBUG"):
        traceback.print_exc()
