"""The goals, each with the figure that meets it or does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import sections
from .figures import Spread, paired_ratio, short
from .metadata import MAPPINGS_PER_GIB, MAPPINGS_PER_TIB, Grown
from .pieces import FLUSH, Flood, level_name
from .results import Results, least
from .rounds import Measured, Row
from .sections import FILE, FILE_ONE, INTERNAL, OURS, OVERLAY, PYTHON, QCOW2, THREADS

# Two runs of the same work on the same server differ by this much: what is within is "the same".
SAME = 0.9


@dataclass(frozen=True)
class Judged:
    goal: str
    figure: str
    met: bool


def judge(results: Results) -> list[Judged]:
    """All goals for which this run has figures."""
    return [*_through_nbd(results), *_levels(results), *_flood(results), *_library(results)]


def _through_nbd(results: Results) -> Iterator[Judged]:
    mapped, threads, first = sections.MAPPED, sections.THREADED, sections.FIRST
    shared, flushes = sections.SHARED, sections.FLUSHES
    for key, ours, theirs, least_ratio, what in (
        (mapped, OURS, FILE, 0.95, "mapped blocks"),
        (threads, THREADS, FILE, 0.95, "mapped blocks, several threads a connection for both"),
        (threads, OURS, FILE_ONE, 0.95, "mapped blocks, one thread a connection for both"),
        (mapped, OURS, QCOW2, 2.5, "mapped blocks"),
        (first, OURS, QCOW2, 1.5, "first writes"),
        (shared, OURS, INTERNAL, 1.5, "first writes after a snapshot"),
        (shared, OURS, OVERLAY, 1.5, "first writes after a snapshot"),
        (flushes, OURS, QCOW2, 1.0, "a flush after each write"),
        (mapped, PYTHON, QCOW2, 1.0, "mapped blocks, Python alone"),
        (first, PYTHON, QCOW2, 1.0, "first writes, Python alone"),
        (shared, PYTHON, INTERNAL, 1.0, "first writes after a snapshot, Python alone"),
        (shared, PYTHON, OVERLAY, 1.0, "first writes after a snapshot, Python alone"),
        (flushes, PYTHON, QCOW2, 1.0, "a flush after each write, Python alone"),
    ):
        section = results.section(key)
        found = least(section.work, ours, theirs) if section is not None else []
        if found:
            enough = sum(value >= least_ratio for value, _ in found)
            worst, row = found[0]
            yield Judged(
                f"{what}: at least {least_ratio:g} of {theirs}",
                f"{enough} of {len(found)}; least {short(worst)} ({row})",
                enough == len(found),
            )


def _levels(results: Results) -> Iterator[Judged]:
    section = results.section(sections.LEVELS)
    if section is None:
        return
    values = {row.figure.name: row.values.get(OURS, []) for row in section.rows}
    none, most = values.get(level_name(0)), values.get(level_name(max(sections.LEVEL_COUNTS)))
    found = paired_ratio(most, none) if none and most else None
    if found is not None:
        yield Judged(
            f"reads through {max(sections.LEVEL_COUNTS)} levels of snapshots: as through none",
            f"{found} of it",
            found.median >= SAME,
        )


def _flood(results: Results) -> Iterator[Judged]:
    section = results.section(sections.FLOOD)
    if section is not None:
        yield from _no_worse(section, Flood.FLOODED, "4 KiB read p99 under a flood of writes")
    section = results.section(sections.FIRST_FLUSH)
    if section is not None:
        for row in section.rows:
            if row.figure.name.startswith(FLUSH):
                yield from _no_worse(section, row.figure.name, row.figure.name)


def _no_worse(section: Measured, name: str, what: str) -> Iterator[Judged]:
    row: Row = next(row for row in section.rows if row.figure.name == name)
    for value, _ in least([row], OURS, QCOW2):
        ours = Spread.of([one for one in row.values[OURS] if one is not None])
        yield Judged(
            f"{what}: no longer than {QCOW2}'s",
            f"{ours} {row.figure.unit}, {short(value)} times better",
            value >= 1,
        )


def _library(results: Results) -> Iterator[Judged]:
    grown = results.growth
    for gib in (1, 1024):
        yield from _each(
            [one for one in grown if one.mappings == gib * MAPPINGS_PER_GIB and one.work],
            f"snapshot of {gib:,} GiB mapped: under 10 ms",
            lambda one: one.work.snapshot_ms.median if one.work else 0.0,
            10,
            "ms",
        )
    large = [one for one in grown if one.mappings >= 10 * MAPPINGS_PER_TIB]
    yield from _each(
        large, "open 10 TiB mapped: under 1 s", lambda one: one.open_cold_ms.median, 1000, "ms"
    )
    yield from _each(
        large,
        "open 10 TiB mapped: under 200 MB of memory",
        lambda one: one.open_memory_bytes / 1e6,
        200,
        "MB",
    )
    for case in results.residency:
        yield Judged(
            f"memory in use, {case.server}: at most 8 bytes a mapped block beside the cache",
            f"{short(case.bytes_a_mapping)} bytes at {case.mappings / MAPPINGS_PER_GIB:,.0f} GiB",
            case.bytes_a_mapping <= 8,
        )
    for order, most in (("sequential", 8), ("random", 40)):
        for made in results.inserts:
            if made.order == order:
                yield Judged(
                    f"metadata file: at most {most} bytes a mapping in {order} order",
                    f"{short(made.file_bytes)} bytes",
                    made.file_bytes <= most,
                )


def _each(
    cases: Sequence[Grown], goal: str, value: Callable[[Grown], float], most: float, unit: str
) -> Iterator[Judged]:
    if cases:
        worst = max(map(value, cases))
        yield Judged(goal, f"{short(worst)} {unit}", worst < most)
