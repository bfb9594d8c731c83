"""Results as JSON and as Markdown tables, and the tables put into a document between markers."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from .datapath import CEILING, OURS, RIVAL, DataPath
from .figures import Spread, paired_ratio
from .metadata import MAPPINGS_PER_GIB, Inserts, Large, Opened

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclasses.dataclass(frozen=True)
class Results:
    """All of one run."""

    machine: dict[str, str]
    data_path: DataPath | None
    inserts: list[Inserts]
    large: list[tuple[Large, Opened]]


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
    }


def _version(*command: str) -> str:
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "?"


def to_json(results: Results) -> dict[str, Any]:
    return dataclasses.asdict(results)


def to_markdown(results: Results) -> str:
    parts = [_machine_line(results.machine)]
    if results.data_path is not None:
        parts += _data_path(results.data_path)
    if results.inserts:
        parts += _inserts(results.inserts)
    if results.large:
        parts += _large(results.large)
    return "\n\n".join(parts) + "\n"


def _machine_line(facts: dict[str, str]) -> str:
    return (
        f"Measured on {facts['cores']} cores ({facts['processor']}), {facts['memory']} of memory, "
        f"Linux {facts['kernel']}, Python {facts['python']}, nbdkit {facts['nbdkit']}, "
        f"qemu-nbd {facts['qemu-nbd']}, fio {facts['fio']}."
    )


def _data_path(measured: DataPath) -> list[str]:
    rows = []
    for row in measured.rows:
        rates = row.rates
        rows.append(
            [
                row.workload.name,
                row.workload.unit,
                *(str(Spread.of(rates[name])) for name in (OURS, CEILING, RIVAL)),
                str(paired_ratio(rates[OURS], rates[CEILING])),
                str(paired_ratio(rates[OURS], rates[RIVAL])),
            ]
        )
    head = ["work", "unit", OURS, CEILING, RIVAL, "ours / file", "ours / qcow2"]
    rounds = len(measured.rows[0].rates[OURS])
    memory = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in measured.memory.items())
    path = "with the C filter" if measured.fastpath else "Python alone"
    return [
        (
            f"Through NBD ({path}), median (least-greatest) of {rounds} rounds, mapped volumes of "
            f"{measured.mapped_size >> 20} MiB; the ratios are medians of each round's own ratio:"
        ),
        _table(head, rows),
        f"Private memory of the servers afterwards: {memory}.",
    ]


def _inserts(measured: list[Inserts]) -> list[str]:
    rows = [
        [
            f"{case.mappings:,} in {case.order} order",
            f"{case.insert_us:.1f}",
            f"{case.commit_us:.1f}",
            f"{case.file_bytes:.1f}",
            f"{case.memory_bytes / 1e6:.0f}",
        ]
        for case in measured
    ]
    head = ["mappings, one at a time", "insert us", "+ commit us", "file bytes each", "memory MB"]
    return [
        "The metadata library alone, on LMDB, a commit each 20,000 mappings:",
        _table(head, rows),
    ]


def _large(measured: list[tuple[Large, Opened]]) -> list[str]:
    rows = []
    for case, opened in measured:
        order = f"shuffled runs of {case.run}" if case.run else "in sequence"
        rows.append(
            [
                f"{case.mappings / MAPPINGS_PER_GIB:,.0f} GiB, {order}",
                str(case.snapshot_ms),
                str(opened.cold_ms),
                str(opened.warm_ms),
                f"{opened.memory_bytes / 1e6:.1f}",
                f"{case.file_bytes:.2f}",
            ]
        )
    head = [
        "mapped",
        "snapshot + commit ms",
        "open ms, from disk",
        "open ms, cached",
        "memory MB",
        "file bytes a mapping",
    ]
    return ["Large volumes (1 TiB is 16.8 million mappings):", _table(head, rows)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put_into(document: Path, tables: str) -> None:
    """Replaces what stands between the two markers of `document`."""
    text = document.read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{document} has no place for figures: {BEGIN} ... {END}")
    document.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
