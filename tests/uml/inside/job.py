"""What goes into the machine and what comes out: two pickles in a directory both sides see.

A function is pickled as its module and name, so jobs are functions of modules.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JOB = "job"
REPORT = "report"


@dataclass(frozen=True, slots=True)
class Job:
    """A call to make inside. `modules`: kernel modules, as paths below its `kernel` directory."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: tuple[str, ...]
    limit_s: float


@dataclass(slots=True)
class Report:
    """How it went. `error`: a traceback, or why there is none; None when `value` is a result.

    `kernel`: what the kernel logged as a warning or worse.
    """

    value: Any = None
    error: str | None = "the job left no result"
    kernel: list[str] = field(default_factory=list)


def save(path: Path, what: Job | Report) -> None:
    """Write it whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_bytes(pickle.dumps(what))
    scratch.replace(path)


def load(path: Path) -> Any:
    """Read what `save` wrote."""
    return pickle.loads(path.read_bytes())
