"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from . import datapath, metadata, report, workloads


def main() -> None:
    options = parse()
    # A terminated run unwinds like an interrupted one, and so ends the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))
    # The servers' own dictionary of names: this environment's thinpool, and nbdkit's Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="thinpoold-bench-", dir=options.directory) as scratch:
        results = run(options, Path(scratch))
    tables = report.to_markdown(results)
    print(tables, end="")
    if options.json:
        options.json.write_text(json.dumps(report.to_json(results), indent=1) + "\n")
    if options.update:
        report.put_into(options.update, tables)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures thinpoold beside nbdkit's file plugin and qemu-nbd qcow2, "
        "and the metadata library alone. Markdown tables go to stdout.",
    )
    parser.add_argument("--quick", action="store_true", help="small, under two minutes")
    parser.add_argument(
        "--only", choices=["data", "metadata"], help="only the servers, or only the library"
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
    return parser.parse_args()


def run(options: argparse.Namespace, scratch: Path) -> report.Results:
    quick: bool = options.quick
    measured = None
    if options.only != "metadata":
        size = workloads.GIB // 4 if quick else workloads.GIB
        measured = datapath.measure(
            scratch,
            workloads.table(size, quick=quick),
            size=size,
            rounds=options.rounds or (2 if quick else 5),
            seconds=options.seconds or (1 if quick else 5),
        )
    results = report.Results(report.machine(), measured, [], [])
    if options.only != "data":
        measure_metadata(results, scratch, quick=quick)
    return results


def measure_metadata(results: report.Results, scratch: Path, *, quick: bool) -> None:
    for order in ("sequential", "random"):
        datapath.say(f"metadata: inserts in {order} order")
        path = scratch / f"{order}.lmdb"
        count = 50_000 if quick else 1_000_000
        results.inserts.append(metadata.alone(metadata.inserts, path, order, count))
    cases = [(1, 0), (16, 0), (16, 16)] if quick else [(1, 0), (1024, 0), (1024, 16)]
    for gib, run in cases:
        datapath.say(f"metadata: {gib} GiB mapped" + (f" in runs of {run}" if run else ""))
        path = scratch / f"{gib}-{run}.lmdb"
        mappings = gib * metadata.MAPPINGS_PER_GIB
        large = metadata.alone(metadata.build, path, mappings, run, 20)
        opened = metadata.opening(path, mappings, 3 if quick else 7)
        results.large.append((large, opened))


if __name__ == "__main__":
    main()
