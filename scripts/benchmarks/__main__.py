"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import metadata, report, residency, results, sections
from .ours import PythonAlone, Thinpoold
from .pieces import MIB
from .rounds import Peers, Runner, say, told

INSERTS, GROWTH, MEMORY = "inserts", "growth", "memory"


def main() -> None:
    options = parse()
    # A terminated run unwinds like an interrupted one, and so ends the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))
    # The servers' own dictionary of names: this environment's thinpool, and nbdkit's Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="thinpoold-bench-", dir=options.directory) as scratch:
        measured = run(options, Path(scratch))
    tables = report.to_markdown(measured)
    print(tables, end="")
    if options.json:
        options.json.write_text(json.dumps(measured.to_json(), indent=1) + "\n")
    if options.update:
        report.put_into(options.update, tables)
    if options.plot:
        from . import plot  # takes a second to import

        plot.draw(measured, options.plot)
    if measured.failures:
        sys.exit(f"bench: {len(measured.failures)} pieces of work failed and were left out")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures thinpoold beside nbdkit's file plugin and qemu-nbd qcow2, "
        "and the metadata library alone. Markdown tables go to stdout.",
    )
    parser.add_argument("--quick", action="store_true", help="small, under two minutes")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="*",
        help="only the tables whose name matches: " + ", ".join(keys()),
    )
    parser.add_argument("--rounds", type=int, help="how often each server does each work")
    parser.add_argument("--seconds", type=float, help="how long each time")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where the images and pools go, all of them (default: /var/tmp)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all values, as JSON")
    parser.add_argument(
        "--update", type=Path, metavar="DOCUMENT", help="puts the tables between its markers"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.3 if options.quick else 1.0)
    if not any(fnmatch.fnmatch(key, options.only) for key in keys()):
        parser.error(f"no table is called {options.only}; there are {', '.join(keys())}")
    return options


def keys() -> list[str]:
    return [*sections.KEYS, INSERTS, GROWTH, MEMORY]


def run(options: argparse.Namespace, scratch: Path) -> results.Results:
    quick: bool = options.quick
    mapped = 128 * MIB if quick else 1024 * MIB
    asked: dict[str, Any] = {
        "quick": quick,
        "only": options.only,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "mapped_mib": mapped // MIB,
    }
    measured = results.Results(results.machine(), asked)

    def wanted(key: str) -> bool:
        return fnmatch.fnmatch(key, options.only)

    with Peers(scratch) as peers:
        runner = Runner(peers, scratch, seconds=options.seconds, mapped=mapped)
        for section in sections.table(quick=quick):
            if wanted(section.key):
                measured.sections.append(runner.measure(section, options.rounds))
        if measured.sections:
            with kept(measured.failures, "status"):
                ours = peers.get(sections.OURS)
                assert isinstance(ours, Thinpoold)
                measured.fastpath = bool(ours.status()["fastpath"])
        measured.failures += runner.failures
    for key, measure in (
        (INSERTS, measure_inserts),
        (GROWTH, measure_growth),
        (MEMORY, measure_memory),
    ):
        if wanted(key):
            for what, case in measure(measured, scratch, options):
                say(what)
                with kept(measured.failures, what):
                    case()
    return measured


Cases = Iterator[tuple[str, Callable[[], None]]]


def measure_inserts(into: results.Results, scratch: Path, options: argparse.Namespace) -> Cases:
    count = 50_000 if options.quick else 1_000_000
    for order in ("sequential", "random"):

        def case(order: str = order) -> None:
            path = scratch / f"{order}.lmdb"
            into.inserts.append(metadata.alone(metadata.inserts, path, order, count))
            path.unlink()

        yield f"{INSERTS}: {count:,} in {order} order", case


def measure_growth(into: results.Results, scratch: Path, options: argparse.Namespace) -> Cases:
    sizes = (1, 4) if options.quick else (1, 16, 128, 1024)
    cases = [(gib, run, True) for run in (0, 16) for gib in sizes]
    if not options.quick:
        cases.append((10 << 10, 0, False))
    for gib, run, work in cases:

        def case(gib: int = gib, run: int = run, work: bool = work) -> None:
            mappings = gib * metadata.MAPPINGS_PER_GIB
            path, times = scratch / f"{gib}-{run}.lmdb", 2 if options.quick else 5
            into.growth.append(metadata.grown(path, mappings, run, times, work=work))

        yield f"{GROWTH}: {gib:,} GiB mapped" + (f" in runs of {run}" if run else ""), case


def measure_memory(into: results.Results, scratch: Path, options: argparse.Namespace) -> Cases:
    mappings = metadata.MAPPINGS_PER_GIB * (16 if options.quick else 1024)
    kinds = [Thinpoold, *([PythonAlone] if sections.filter_can_be_left_out() else [])]

    def case() -> None:
        large = residency.Large(scratch / "memory", mappings)
        for kind in kinds:
            into.residency.append(large.measure(kind, options.seconds))

    yield f"{MEMORY}: {mappings // metadata.MAPPINGS_PER_GIB:,} GiB mapped", case


@contextlib.contextmanager
def kept(failures: list[str], what: str) -> Iterator[None]:
    """Goes on after a failure, which is kept."""
    try:
        yield
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        failures.append(f"{what}: {told(error)}")
        say(f"FAILED: {failures[-1]}")


if __name__ == "__main__":
    main()
