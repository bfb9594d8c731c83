"""The benchmarks' arithmetic, their report, and one small run; figures are for scripts/bench."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.benchmarks import (
    figures,
    goals,
    metadata,
    nbd_client,
    plot,
    process,
    qcow2,
    report,
    residency,
    results,
    rounds,
    sections,
)
from scripts.benchmarks.ours import OwnCache, PythonAlone, Thinpoold
from scripts.benchmarks.peers import (
    FilePlugin,
    ImagePeer,
    NotOfferedError,
    Peer,
    PythonNoop,
    QemuNbd,
)
from scripts.benchmarks.pieces import MIB, Beside, Effort, Figure, FirstFlush, Flood, Load, Piece
from scripts.benchmarks.sections import FILE, OURS, Section

SIZE = 4 * MIB


# --- arithmetic -----------------------------------------------------------------------------------


def test_a_spread_is_the_median_between_the_least_and_the_greatest() -> None:
    spread = figures.Spread.of([3.0, 1.0, 1250.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 1.0, 1250.0)
    assert str(spread) == "3.00 (1.00-1,250)"
    assert str(figures.Spread.of([12.34])) == "12.3"


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was ten times slower in the second round, for both.
    assert figures.paired_ratio([200.0, 20.0], [100.0, 10.0]) == figures.Spread(2.0, 2.0, 2.0)


def test_a_ratio_above_one_is_better_where_less_is() -> None:
    assert figures.paired_ratio([5.0], [20.0], less_is_better=True) == figures.Spread(4.0, 4.0, 4.0)


def test_rounds_that_one_side_failed_do_not_count() -> None:
    assert figures.paired_ratio([2.0, None, 9.0], [1.0, 1.0, None]) == figures.Spread(2.0, 2.0, 2.0)
    assert figures.paired_ratio([None], [1.0]) is None
    assert figures.spread([None]) is None


def test_ratios_need_as_many_rounds_on_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.paired_ratio([1.0, 2.0], [1.0])


# --- rounds ---------------------------------------------------------------------------------------


class Fake(Peer):
    """Notes who was asked when; one that `fails` breaks in the second round."""

    name = "fake"
    asked: list[str]
    fails = False

    def mapped(self, size: int) -> str:
        return self.directory.name

    def empty(self, size: int) -> AbstractContextManager[str]:
        raise NotOfferedError

    def processes(self) -> list[int]:
        return []

    def memory(self) -> int:
        return 1 << 20

    def close(self) -> None:
        self.asked.append(f"close {self.name}")


class Ask:
    """A piece of work that only notes for whom it was done."""

    figures = (Figure("asking", "times"),)

    def do(self, peer: Peer, effort: Effort, settle: object) -> tuple[float, ...]:
        assert isinstance(peer, Fake)
        peer.asked.append(peer.name)
        if peer.fails and effort.seed == 2:
            raise OSError("broke")
        return (float(effort.seed),)


class AskEmpty(Ask):
    figures = (Figure("asking for what is not had", "times"),)

    def do(self, peer: Peer, effort: Effort, settle: object) -> tuple[float, ...]:
        with peer.empty(1):
            return (0.0,)


def measured(
    tmp_path: Path, pieces: Sequence[Piece], fails: str = ""
) -> tuple[rounds.Measured, rounds.Runner, list[str]]:
    asked: list[str] = []

    def kind(which: str) -> sections.Kind:
        return type("Fake", (Fake,), {"name": which, "asked": asked, "fails": which == fails})

    names = ["a", "b", "c"]
    with rounds.Peers(tmp_path, {name: kind(name) for name in names}) as peers:
        runner = rounds.Runner(peers, tmp_path, seconds=1, mapped=1)
        section = Section("key", "title", pieces, names, [("a", "b")])
        return runner.measure(section, 3), runner, asked


def test_servers_take_turns_and_the_order_rotates(tmp_path: Path) -> None:
    found, runner, asked = measured(tmp_path, [Ask()])
    assert asked == [*"abc", *"bca", *"cab", "close a", "close b", "close c"]
    assert all(found.rows[0].values[name] == [1.0, 2.0, 3.0] for name in "abc")
    assert not runner.failures


def test_a_server_that_fails_is_left_out_ended_and_started_anew(tmp_path: Path) -> None:
    found, runner, asked = measured(tmp_path, [Ask()], fails="b")
    assert asked[:7] == [*"abc", "b", "close b", *"ca"]
    assert found.rows[0].values["b"] == [1.0, None, 3.0]
    assert runner.failures == ["key, asking: b: OSError: broke"]


def test_what_a_server_does_not_offer_is_no_failure(tmp_path: Path) -> None:
    found, runner, _ = measured(tmp_path, [AskEmpty()])
    assert found.rows[0].values["a"] == [None] * 3
    assert not runner.failures


def test_a_server_that_cannot_be_started_is_tried_once(tmp_path: Path) -> None:
    def broken(directory: Path) -> Peer:
        raise OSError("no such program")

    with rounds.Peers(tmp_path, {"broken": broken}) as peers:
        runner = rounds.Runner(peers, tmp_path, seconds=1, mapped=1)
        found = runner.measure(Section("key", "title", [Ask(), AskEmpty()], ["broken"], []), 2)
    assert [row.values["broken"] for row in found.rows] == [[None, None], [None, None]]
    assert runner.failures == ["key, asking: broken: OSError: no such program"]


# --- the report -----------------------------------------------------------------------------------


OPTIONS = {"quick": True, "rounds": 1, "seconds": 1.0, "mapped_mib": 1024}


def run_of(ours: float, file: float, qcow2: float) -> results.Results:
    """A whole run in which every row came to these values."""
    found = results.Results(results.machine(), OPTIONS, fastpath=True, failures=["a: b"])
    for section in sections.table(quick=False):
        values: dict[str, rounds.Values] = {name: [qcow2] for name in section.servers}
        values |= {OURS: [ours], FILE: [file], sections.FILE_ONE: [file], sections.THREADS: [ours]}
        rows = [
            rounds.Row(figure, {name: values[name] for name in section.servers})
            for piece in section.pieces
            for figure in piece.figures
        ]
        found.sections.append(
            rounds.Measured(
                section.key,
                section.title,
                section.servers,
                section.ratios,
                1,
                rows,
                {OURS: 1 << 20},
            )
        )
    one = figures.Spread.of([1.0])
    for gib, run in ((1, 0), (1024, 0), (1024, 16)):
        work = metadata.Work(one, one, one, one, 1.0, 1.0)
        found.growth.append(metadata.Grown(gib << 14, run, 1.0, 0.5, one, one, 0, work))
    found.growth.append(metadata.Grown(10 << 24, 0, 1.0, 0.5, one, one, 0, None))
    found.inserts += [metadata.Inserts(o, 1000, 5.0, 1.0, 8.0, 0) for o in ("sequential", "random")]
    found.residency.append(residency.Residency(OURS, 1 << 24, 0, (64 << 20) + (8 << 24)))
    return found


def test_every_figure_is_in_the_report() -> None:
    found = run_of(1.0, 2.0, 4.0)
    text = report.to_markdown(found)
    for section in sections.table(quick=False):
        for piece in section.pieces:
            for figure in piece.figures:
                assert f"| {figure.name} | {figure.unit}" in text
    assert "| 0.50 | 0.25 |" in text  # ours over each of two peers
    assert "| 1,024 GiB, shuffled runs of 16 | 1.00 |" in text
    assert "- a: b" in text
    assert "`scripts/bench --quick --rounds 1 --seconds 1`" in text
    assert json.loads(json.dumps(found.to_json()))["fastpath"] is True


def test_goals_are_met_by_what_is_good_enough() -> None:
    judged = goals.judge(run_of(1.0, 1.0, 0.4))
    rates = [one for one in judged if "of nbdkit file" in one.goal or "of qemu-nbd" in one.goal]
    assert rates
    assert all(one.met for one in rates)


def test_goals_are_not_met_by_what_is_not() -> None:
    judged = {one.goal: one for one in goals.judge(run_of(0.9, 1.0, 0.4))}
    missed = judged["mapped blocks: at least 0.95 of nbdkit file"]
    assert not missed.met
    assert missed.figure.startswith("0 of 20; least 0.90")
    assert judged["first writes: at least 1.5 of qemu-nbd qcow2"].met


def test_goals_in_time_and_memory_are_ceilings() -> None:
    found = run_of(1.0, 1.0, 1.0)
    slow = figures.Spread.of([10.0])
    work = metadata.Work(slow, slow, slow, slow, 1.0, 1.0)
    found.growth.append(metadata.Grown(1024 << 14, 16, 1.0, 0.5, slow, slow, 0, work))
    found.residency.append(residency.Residency("fat", 1 << 24, 0, (64 << 20) + (9 << 24)))
    judged = {one.goal: one.met for one in goals.judge(found)}
    assert judged["snapshot of 1 GiB mapped: under 10 ms"]
    assert not judged["snapshot of 1,024 GiB mapped: under 10 ms"]
    assert judged["open 10 TiB mapped: under 1 s"]
    told = "memory in use, {}: at most 8 bytes a mapped block beside the cache"
    assert judged[told.format(OURS)]
    assert not judged[told.format("fat")]


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


def test_everything_measured_is_in_the_picture(tmp_path: Path) -> None:
    found = run_of(1.0, 2.0, 4.0)
    plot.draw(found, tmp_path / "all.svg")
    drawn = {text.text for text in ElementTree.parse(tmp_path / "all.svg").iter() if text.text}
    for section in found.sections:
        assert set(section.servers) <= drawn
        if section.key != sections.LEVELS and section.ratios:
            assert {row.figure.name for row in section.work} <= drawn
    assert {"levels of snapshots", "check"} <= drawn


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.draw(results.Results(results.machine(), {}), tmp_path / "none.png")


def test_processor_time_is_counted() -> None:
    before = process.processor_seconds(os.getpid())
    while (spent := process.processor_seconds(os.getpid()) - before) < 0.05:
        sum(range(10_000))
    assert spent < 5


# --- the servers ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the command line of the benchmarks does it.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


KINDS: list[type[Peer]] = [
    Thinpoold,
    PythonAlone,
    OwnCache,
    FilePlugin,
    PythonNoop,
    QemuNbd,
    qcow2.InternalSnapshots,
    qcow2.Overlays,
]
SNAPSHOTTING = [Thinpoold, qcow2.InternalSnapshots, qcow2.Overlays]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_a_server_does_a_piece_of_work(tmp_path: Path, kind: type[Peer]) -> None:
    peer = kind(tmp_path / "peer")
    try:
        effort = Effort(0.05, SIZE, 1, tmp_path)
        work: list[Piece] = [Load("any", "randwrite", 4096, 4, 2), FirstFlush(SIZE)]
        if isinstance(peer, Thinpoold | FilePlugin):
            work.append(Flood())
        if kind is Thinpoold:
            work.append(Beside("first writes", ("block status", "prefetch")))
        if kind in SNAPSHOTTING:
            work.append(Load("any", "randwrite", 4096, 4, on="shared", amount=1 << 16, flush=True))
        for piece in work:
            values = piece.do(peer, effort, lambda new=0: None)
            assert len(values) == len(piece.figures)
            for figure, value in zip(piece.figures, values, strict=True):
                # A hundredth of a second of the processor may be more than so little takes.
                assert value > 0 or (figure.processor and value == 0)
        assert peer.memory() > 0
    finally:
        peer.close()
    if isinstance(peer, ImagePeer):
        with pytest.raises(OSError, match="No such process"):
            os.kill(peer._server.pid if peer._server else 0, 0)


@pytest.mark.parametrize("kind", SNAPSHOTTING, ids=lambda kind: str(kind.name))
def test_levels_hold_what_each_wrote(tmp_path: Path, kind: type[Peer]) -> None:
    peer = kind(tmp_path / "peer")
    try:
        with peer.levels(SIZE, 2) as uri, nbd_client.connected(uri) as handle:
            # Two levels' writes, over data that fio wrote: no byte range is a hole.
            assert handle.get_size() == SIZE
            assert bytes(handle.pread(4096, 0)) != bytes(4096)
    finally:
        peer.close()


# --- the metadata library -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_inserts_are_measured(tmp_path: Path, order: str) -> None:
    case = metadata.inserts(tmp_path / "inserts.lmdb", order, 2000)
    assert case.mappings == 2000
    assert case.file_bytes > 0


@pytest.mark.parametrize("run", [0, 16])
def test_a_large_volume_is_measured_in_parts(tmp_path: Path, run: int) -> None:
    path, mappings = tmp_path / "large.lmdb", 1 << 15
    _, size = metadata.build(path, mappings, run)
    assert 0 < size < 40
    metadata.forget(path)
    assert metadata.open_once(path, mappings)[0] > 0
    for values in metadata.change(path, mappings, 2):
        assert len(values) == 2
        assert min(values) > 0
    assert metadata.check_once(path) > 0
    assert metadata.delete_once(path) > 0


def test_the_memory_of_a_daemon_in_use_is_measured(tmp_path: Path) -> None:
    mappings = metadata.MAPPINGS_PER_GIB // 4
    large = residency.Large(tmp_path / "peer", mappings)
    for kind in (Thinpoold, PythonAlone):
        case = large.measure(kind, 0.05)
        assert case.server == kind.name
        # Garbage of the start may go meanwhile, so the second may be the smaller one.
        assert min(case.idle, case.used) > 1 << 20
