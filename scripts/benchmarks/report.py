"""Results as Markdown tables, and the tables put into a document between markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import goals
from .figures import spread
from .metadata import COMMIT_INSERTS, MAPPINGS_PER_GIB, Grown, Inserts
from .residency import Residency
from .results import Results, ratio
from .rounds import Measured, Row

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ABSENT = "-"


def to_markdown(results: Results) -> str:
    parts = [_machine(results)]
    judged = goals.judge(results)
    if judged:
        rows = [[one.goal, one.figure, "yes" if one.met else "**no**"] for one in judged]
        parts += ["### Goals", _table(["goal", "figure", "met"], rows)]
    for section in results.sections:
        parts += _section(section)
    parts += _memory(results.sections)
    if results.growth or results.inserts:
        parts.append("### The metadata library alone, on LMDB")
    if results.inserts:
        parts += _inserts(results.inserts)
    if results.growth:
        parts += _growth(results.growth)
    if results.residency:
        parts += _residency(results.residency)
    if results.failures:
        parts.append("### Left out, because it failed")
        parts.append("\n".join(f"- {failure}" for failure in results.failures))
    return "\n\n".join(parts) + "\n"


def _machine(results: Results) -> str:
    facts, options = results.machine, results.options
    path = "with its C filter" if results.fastpath else "without a C filter"
    ran = f" thinpoold ran {path}." if results.fastpath is not None else ""
    how = " ".join(
        [
            "scripts/bench",
            *(["--quick"] if options["quick"] else []),
            f"--rounds {options['rounds']} --seconds {options['seconds']:g}",
        ]
    )
    return (
        f"Made by `{how}` on {facts['cores']} cores ({facts['processor']}), "
        f"{facts['memory']} of memory, Linux {facts['kernel']}, Python {facts['python']}, "
        f"nbdkit {facts['nbdkit']}, qemu-nbd {facts['qemu-nbd']}, fio {facts['fio']}; "
        f"the load when it began was {facts['load before']}.{ran} Mapped volumes have "
        f"{options['mapped_mib']} MiB; each piece of work took {options['seconds']:g} s, or "
        "as long as its amount takes."
    )


def _section(section: Measured) -> list[str]:
    shown = [name for name in section.servers if any(_values(row, name) for row in section.rows)]
    pairs = [pair for pair in section.ratios if set(pair) <= set(shown)]
    parts = [
        f"### {section.title}",
        f"{_rounds(section.rounds)}.",
        _compared(section.work, shown, pairs),
    ]
    if section.processor:
        parts.append("Processor time of the server for each request, its own and in the kernel:")
        parts.append(_compared(section.processor, shown, []))
    return parts


def _compared(
    measured: Sequence[Row], shown: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> str:
    rows = []
    for row in measured:
        less = row.figure.less_is_better and not row.figure.processor
        better = " (less is better)" if less else ""
        rows.append(
            [
                row.figure.name,
                row.figure.unit + better,
                *(str(spread(row.values.get(name, [])) or ABSENT) for name in shown),
                *(str(ratio(row, *pair) or ABSENT) for pair in pairs),
            ]
        )
    head = ["work", "unit", *shown, *(f"{ours} / {theirs}" for ours, theirs in pairs)]
    return _table(head, rows)


def _rounds(rounds: int) -> str:
    if rounds == 1:
        return "One round"
    return f"Median (least-greatest) of {rounds} rounds"


def _values(row: Row, name: str) -> bool:
    return any(value is not None for value in row.values.get(name, []))


def _memory(measured: Sequence[Measured]) -> list[str]:
    """Of each server, after the last section in which it took part."""
    latest: dict[str, int] = {}
    for section in measured:
        latest |= section.memory
    if not latest:
        return []
    shown = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in latest.items())
    return [f"Private memory of the servers with a mapped volume, at the end: {shown}."]


def _inserts(measured: Sequence[Inserts]) -> list[str]:
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
    return ["Into an empty device, a commit each 20,000 mappings:", _table(head, rows)]


def _growth(measured: Sequence[Grown]) -> list[str]:
    rows = []
    for case in measured:
        work = case.work
        rows.append(
            [
                size_name(case),
                *(
                    map(str, (work.insert_us, work.commit_ms, work.snapshot_ms))
                    if work
                    else [ABSENT] * 3
                ),
                str(work.delete_snapshot_ms) if work else ABSENT,
                str(case.open_cold_ms),
                str(case.open_warm_ms),
                f"{work.check_seconds:.2f}" if work else ABSENT,
                f"{work.delete_seconds:.2f}" if work else ABSENT,
                f"{case.open_memory_bytes / 1e6:.1f}",
                f"{case.file_bytes:.2f}",
            ]
        )
    head = [
        "mapped",
        "insert us",
        "commit ms",
        "snapshot ms",
        "delete it ms",
        "open ms, from disk",
        "open ms, cached",
        "check s",
        "delete all s",
        "memory to open MB",
        "file bytes a mapping",
    ]
    return [
        (
            "As mapped blocks grow (1 TiB is 16.8 million mappings): "
            f"{COMMIT_INSERTS:,} inserts at random places, one by one, and the commit of those; a "
            "snapshot with its commit, and deleting it with its commit; opening in a new process; "
            "checking the whole file; deleting the whole device:"
        ),
        _table(head, rows),
    ]


def size_name(case: Grown) -> str:
    order = f"shuffled runs of {case.run}" if case.run else "in sequence"
    return f"{case.mappings / MAPPINGS_PER_GIB:,.0f} GiB, {order}"


def _residency(measured: Sequence[Residency]) -> list[str]:
    rows = [
        [
            case.server,
            f"{case.mappings / MAPPINGS_PER_GIB:,.0f} GiB",
            f"{case.idle / 1e6:.0f}",
            f"{case.used / 1e6:.0f}",
            f"{case.cache / 1e6:.0f}",
            f"{case.bytes_a_mapping:.1f}",
        ]
        for case in measured
    ]
    head = [
        "daemon",
        "mapped, in shuffled runs of 16",
        "just started, MB",
        "in use, MB",
        "of which the cache may be, MB",
        "beside that, bytes a mapping",
    ]
    return [
        "### Memory of the daemon with a large volume in use",
        "Private memory once reads have met every leaf of its tree, and random reads and writes:",
        _table(head, rows),
    ]


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


__all__ = ["BEGIN", "END", "put_into", "size_name", "to_markdown"]
