"""Results as one picture, SVG or PNG by the file's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import sections
from .figures import Spread, spread
from .metadata import MAPPINGS_PER_GIB, Grown, Work
from .results import Results, ratio
from .rounds import Measured

COLOURS = {
    sections.OURS: "#0b6e4f",
    sections.PYTHON: "#7fc8a9",
    sections.THREADS: "#c2a83e",
    sections.BUFIO: "#5f8fb4",
    sections.FILE: "#222222",
    sections.FILE_ONE: "#666666",
    sections.NOOP: "#9a9a9a",
    sections.QCOW2: "#c8553d",
    sections.INTERNAL: "#c8553d",
    sections.OVERLAY: "#e6a57e",
}
BAR = 0.2  # of the distance from one work to the next
INCHES = 0.34  # from one work to the next


def draw(results: Results, path: Path) -> None:
    """Draws what there is of: every work against qcow2 or the file plugin, reads through snapshots,
    the library's growth."""
    # No dates and no random names, so that only what changed differs; and text stays text.
    settings: Any = {"svg.hashsalt": "thinpoold", "svg.fonttype": "none", "font.size": 8}
    with mpl.rc_context(settings):
        bars = [section for section in results.sections if _compared(section)]
        levels = results.section(sections.LEVELS)
        below = sum(1 for drawn in (levels, results.growth) if drawn)
        heights = [0.45 + len(section.work) * INCHES for section in bars] + [4.0] * bool(below)
        if not heights:
            raise ValueError("there is nothing to draw")
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        for place, section in enumerate(bars):
            _bars(figure.add_subplot(grid[place]), section)
        if below:
            halves = grid[-1].subgridspec(1, below)
            if levels:
                _levels(figure.add_subplot(halves[0]), levels)
            if results.growth:
                _growth(figure.add_subplot(halves[-1]), results.growth)
        _legend(figure)
        stamp = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=stamp)


def _legend(figure: Figure) -> None:
    """One for all the bars."""
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        if axes.get_legend() is None:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
    if named:
        figure.legend(
            list(named.values()), list(named), loc="outside upper center", ncols=4, fontsize=7
        )


def _compared(section: Measured) -> bool:
    return section.key != sections.LEVELS and bool(section.ratios)


def _bars(axes: Axes, section: Measured) -> None:
    """How many times as good as the last named server each one is, a line a work."""
    _, base = section.ratios[-1]
    shown = [name for name in section.servers if name != base]
    rows = list(reversed(section.work))
    for place, name in enumerate(shown):
        found = [ratio(row, name, base) or Spread(0, 0, 0) for row in rows]
        at = [index + (len(shown) / 2 - place - 0.5) * BAR for index in range(len(rows))]
        medians = [one.median for one in found]
        axes.barh(
            at,
            medians,
            BAR,
            xerr=[
                [one.median - one.low for one in found],
                [one.high - one.median for one in found],
            ],
            error_kw={"linewidth": 0.6},
            color=COLOURS[name],
            label=name,
        )
    axes.axvline(1, color=COLOURS[base], linewidth=1.5, label=base)
    axes.set_yticks(range(len(rows)), [row.figure.name for row in rows])
    axes.set_title(f"{section.title}: times as good as {base}", loc="right", fontsize=9)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlim(left=0)


def _levels(axes: Axes, section: Measured) -> None:
    for name in section.servers:
        found = [spread(row.values.get(name, [])) for row in section.rows]
        known = [(index, one.median) for index, one in enumerate(found) if one is not None]
        axes.plot(
            [index for index, _ in known],
            [value for _, value in known],
            marker="o",
            color=COLOURS[name],
            label=name,
        )
    counts = [row.figure.name.split(" through ")[1].split()[0] for row in section.rows]
    axes.set_xticks(range(len(counts)), counts)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("levels of snapshots")
    axes.set_ylabel("random reads 4 KiB, kIOPS")
    axes.set_title(section.title, loc="left", fontsize=9)
    axes.legend(fontsize=7)


CURVES: Sequence[tuple[str, str, Callable[[Grown, Work], float]]] = (
    ("insert, one of a thousand", "#0b6e4f", lambda _, work: work.insert_us.median / 1e6),
    ("commit of a thousand", "#7fc8a9", lambda _, work: work.commit_ms.median / 1e3),
    ("snapshot", "#c8553d", lambda _, work: work.snapshot_ms.median / 1e3),
    ("delete a snapshot", "#e6a57e", lambda _, work: work.delete_snapshot_ms.median / 1e3),
    ("open, from disk", "#3f5fa8", lambda case, _: case.open_cold_ms.median / 1e3),
    ("check", "#222222", lambda _, work: work.check_seconds),
    ("delete the whole volume", "#9a9a9a", lambda _, work: work.delete_seconds),
)


def _growth(axes: Axes, growth: Sequence[Grown]) -> None:
    """Lines for mappings in sequence, dashes for shuffled runs."""
    for run in sorted({case.run for case in growth}):
        cases = [
            (case.mappings / MAPPINGS_PER_GIB, case, case.work)
            for case in growth
            if case.run == run and case.work is not None
        ]
        for label, colour, value in CURVES:
            axes.plot(
                [size for size, _, _ in cases],
                [value(case, work) for _, case, work in cases],
                color=colour,
                linestyle="--" if run else "-",
                marker=".",
                label=label if not run else None,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("GiB mapped; dashed: in shuffled runs")
    axes.set_ylabel("seconds")
    axes.set_title("The metadata library, as mapped blocks grow", loc="left", fontsize=9)
    axes.legend(fontsize=7)
