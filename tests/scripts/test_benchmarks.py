"""The benchmarks' arithmetic and their report; what they measure is for scripts/bench."""

import json
from pathlib import Path

import pytest

from scripts.benchmarks import datapath, figures, metadata, report, workloads


def test_a_spread_is_the_median_between_the_least_and_the_greatest() -> None:
    spread = figures.Spread.of([3.0, 1.0, 250.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 1.0, 250.0)
    assert str(spread) == "3.00 (1.00-250)"


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was ten times slower in the second round, for both.
    assert figures.paired_ratio([200.0, 20.0], [100.0, 10.0]) == figures.Spread(2.0, 2.0, 2.0)


def test_ratios_need_as_many_rounds_on_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.paired_ratio([1.0, 2.0], [1.0])


def results() -> report.Results:
    rows = [
        datapath.Row(work, {"thinpoold": [1.0], "nbdkit file": [2.0], "qemu-nbd qcow2": [4.0]})
        for work in workloads.table(workloads.GIB, quick=True)
    ]
    large = metadata.Large(16384, 0, 1.0, 0.5, figures.Spread.of([1.0]))
    opened = metadata.Opened(16384, figures.Spread.of([2.0]), figures.Spread.of([3.0]), 0)
    return report.Results(
        dict.fromkeys(report.machine(), "1"),
        datapath.DataPath(rows, {"thinpoold": 1 << 20}, fastpath=False, mapped_size=1 << 30),
        [metadata.Inserts("random", 1000, 5.0, 1.0, 8.0, 0)],
        [(large, opened)],
    )


def test_every_figure_is_in_the_report() -> None:
    text = report.to_markdown(results())
    for work in workloads.table(workloads.GIB, quick=True):
        assert f"| {work.name} | {work.unit} | 1.00 (1.00-1.00) | 2.00" in text
    assert "0.50 (0.50-0.50) | 0.25 (0.25-0.25) |" in text
    assert "| 1 GiB, in sequence | 1.00 (1.00-1.00) | 2.00 (2.00-2.00) | 3.00" in text
    json.dumps(report.to_json(results()))


def test_tables_replace_what_was_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.put_into(document, "| new |\n")
    report.put_into(document, "| newer |\n")
    assert document.read_text() == (f"above\n{report.BEGIN}\n\n| newer |\n\n{report.END}\nbelow\n")


def test_a_document_without_markers_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("no place\n")
    with pytest.raises(ValueError, match="no place for figures"):
        report.put_into(document, "| new |\n")
    assert document.read_text() == "no place\n"


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_the_metadata_cases_run(tmp_path: Path, order: str) -> None:
    case = metadata.inserts(tmp_path / "inserts.lmdb", order, 2000)
    assert case.mappings == 2000
    assert case.file_bytes > 0


@pytest.mark.parametrize("run", [0, 16])
def test_a_large_volume_opens_again(tmp_path: Path, run: int) -> None:
    path = tmp_path / "large.lmdb"
    assert metadata.build(path, 1 << 15, run, snapshots=2).mappings == 1 << 15
    metadata.forget(path)
    spent, _ = metadata.open_once(path, 1 << 15)
    assert spent > 0
