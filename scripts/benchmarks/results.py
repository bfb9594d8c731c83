"""All of one run, as it is kept in JSON and made into tables and plots."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import Spread, paired_ratio
from .metadata import Grown, Inserts
from .residency import Residency
from .rounds import Measured, Row


@dataclasses.dataclass
class Results:
    """`fastpath` says whether thinpoold had its filter, None if no table needed it; `options`, how
    the run was asked for."""

    machine: dict[str, str]
    options: dict[str, Any]
    fastpath: bool | None = None
    sections: list[Measured] = dataclasses.field(default_factory=list)
    inserts: list[Inserts] = dataclasses.field(default_factory=list)
    growth: list[Grown] = dataclasses.field(default_factory=list)
    residency: list[Residency] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def section(self, key: str) -> Measured | None:
        return next((section for section in self.sections if section.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ratio(row: Row, ours: str, theirs: str) -> Spread | None:
    """How many times better `ours` is, None if there is nothing to compare."""
    return paired_ratio(
        row.values.get(ours, []),
        row.values.get(theirs, []) if ours in row.values else [],
        less_is_better=row.figure.less_is_better,
    )


def least(rows: Sequence[Row], ours: str, theirs: str) -> list[tuple[float, str]]:
    """Median ratios with their rows' names, the least first."""
    found = [(ratio(row, ours, theirs), row.figure.name) for row in rows]
    return sorted((one.median, name) for one, name in found if one is not None)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": str(os.cpu_count()),
        "processor": model[1] if model else platform.machine(),
        "memory": f"{int(memory[1]) >> 20} GiB" if memory else "?",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nbdkit": _version("nbdkit", "--version"),
        "qemu-nbd": _version("qemu-nbd", "--version"),
        "fio": _version("fio", "--version"),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _version(*command: str) -> str:
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "?"
