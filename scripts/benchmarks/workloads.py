"""The work each server is given, and how fio is told to do it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True)
class Workload:
    """One line of the table.

    `fresh` work goes to a volume that has never been written; the rest goes to one that is fully
    mapped. `spread` is the size in bytes of the range it touches; `amount`, where not 0, the bytes
    after which it ends even if there is time left.
    """

    name: str
    pattern: str  # fio's word
    block: int  # bytes
    depth: int
    spread: int
    amount: int = 0
    fresh: bool = False

    @property
    def unit(self) -> str:
        return "MB/s" if self.block >= 128 << 10 else "kIOPS"

    @property
    def reads(self) -> bool:
        return self.pattern.endswith("read")


def table(size: int, *, quick: bool) -> list[Workload]:
    """The workloads, with mapped volumes of `size` bytes."""
    first = GIB // 4 if quick else 2 * GIB
    return [
        Workload("random read 4 KiB, depth 16", "randread", 4 << 10, 16, size),
        Workload("random write 4 KiB, depth 16", "randwrite", 4 << 10, 16, size),
        Workload("sequential read 128 KiB, depth 4", "read", 128 << 10, 4, size),
        Workload("sequential write 128 KiB, depth 4", "write", 128 << 10, 4, size),
        Workload(
            "first write, sequential 128 KiB, depth 4",
            "write",
            128 << 10,
            4,
            spread=first,
            amount=first,
            fresh=True,
        ),
        # Spread so thin that nearly every write is the first one to its 64 KiB block.
        Workload(
            "first write, random 4 KiB, depth 16",
            "randwrite",
            4 << 10,
            16,
            spread=64 * GIB,
            amount=(8 << 20) if quick else (64 << 20),
            fresh=True,
        ),
    ]


def run_fio(workload: Workload, uri: str, *, seconds: float, seed: int, scratch: Path) -> float:
    """Does the work once and returns its rate in the workload's unit.

    Raises CalledProcessError or RuntimeError when fio, or the server under it, failed.
    """
    report = scratch / "fio.json"
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={workload.pattern}",
        f"--bs={workload.block}",
        f"--iodepth={workload.depth}",
        f"--size={workload.spread}",
        f"--runtime={seconds}",
        f"--randseed={seed}",
        "--norandommap",
        "--output-format=json",
        f"--output={report}",
    ]
    if workload.amount:
        command += [f"--io_size={workload.amount}"]
    else:
        # What comes first pays for what was written out before: it is left out.
        command += ["--time_based", f"--ramp_time={int(seconds * 250)}ms"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [job] = json.loads(report.read_text())["jobs"]
    side = job["read" if workload.reads else "write"]
    if job["error"] or not side["total_ios"]:
        raise RuntimeError(f"fio did no work: {workload.name} on {uri}")
    rate = side["bw_bytes"] / 1e6 if workload.unit == "MB/s" else side["iops"] / 1e3
    return float(rate)


def fill(uri: str, size: int, scratch: Path) -> None:
    """Writes every byte of [0, size) with data that does not compress, and flushes."""
    subprocess.run(
        [
            "fio",
            "--name=fill",
            "--ioengine=nbd",
            f"--uri={uri}",
            "--rw=write",
            "--bs=1M",
            "--iodepth=4",
            f"--size={size}",
            "--end_fsync=1",
            "--output-format=json",
            f"--output={scratch / 'fill.json'}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
