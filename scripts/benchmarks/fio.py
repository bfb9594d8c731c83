"""How fio is told to do a piece of work through NBD, and what it says about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0  # seconds beyond what it was given, after which a server is taken for hung


@dataclass(frozen=True)
class Job:
    """What fio does to one volume.

    `depth` is the number of requests at a time in all, shared by `connections`. It touches the
    first `spread` bytes of the volume; `amount`, where not 0, is the bytes after which it ends even
    if there is time left. With `flush` each write is followed by a flush.
    """

    uri: str
    pattern: str  # fio's word
    block: int  # bytes
    depth: int
    spread: int
    connections: int = 1
    amount: int = 0
    flush: bool = False

    @property
    def reads(self) -> bool:
        return self.pattern.partition(":")[0].endswith("read")


@dataclass(frozen=True)
class Done:
    """What one job came to. `p99_us`: 99 of 100 requests were answered within that."""

    requests: int
    iops: float
    bytes_per_second: float
    p99_us: float


def run(jobs: Sequence[Job], *, seconds: float, seed: int, scratch: Path) -> list[Done]:
    """Runs the jobs at the same time, in one process of fio; they end together.

    Raises CalledProcessError, TimeoutExpired or RuntimeError when fio, or a server, failed.
    """
    report = scratch / "fio.json"
    command = [
        "fio",
        "--ioengine=nbd",
        "--norandommap",
        "--group_reporting",
        f"--randseed={seed}",
        f"--runtime={int(seconds * 1000)}ms",
        "--output-format=json",
        f"--output={report}",
    ]
    for number, job in enumerate(jobs):
        command += _words(number, job, seconds)
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=seconds + PATIENCE,
    )
    results = json.loads(report.read_text())["jobs"]
    return [_done(job, result) for job, result in zip(jobs, results, strict=True)]


def _words(number: int, job: Job, seconds: float) -> list[str]:
    share = job.spread
    words = [
        f"--name=job{number}",
        f"--uri={job.uri}",
        f"--rw={job.pattern}",
        f"--bs={job.block}",
        f"--iodepth={job.depth // job.connections}",
        f"--numjobs={job.connections}",
        "--new_group",
    ]
    if job.connections > 1 and not job.pattern.startswith("rand"):
        # Each connection has a stream of its own.
        share = job.spread // job.connections
        words.append(f"--offset_increment={share}")
    words.append(f"--size={share}")
    if job.flush:
        words.append("--fsync=1")
    if job.amount:
        words.append(f"--io_size={job.amount // job.connections}")
    else:
        words.append("--time_based")
    return words


def _done(job: Job, result: dict[str, object]) -> Done:
    side = result["read" if job.reads else "write"]
    assert isinstance(side, dict)
    if result["error"] or not side["total_ios"]:
        raise RuntimeError(f"fio did no work: {job}")
    percentiles = side["clat_ns"].get("percentile", {})
    return Done(
        int(side["total_ios"]),
        float(side["iops"]),
        float(side["bw_bytes"]),
        percentiles.get("99.000000", 0) / 1e3,
    )


def fill(uri: str, size: int, scratch: Path) -> None:
    """Writes every byte of [0, size) with data that does not compress, flushes, and reads it once.

    Reading puts into caches and tables what they will hold in the long run.
    """
    for words in (["--rw=write", "--end_fsync=1"], ["--rw=read"]):
        subprocess.run(
            [
                "fio",
                "--name=fill",
                "--ioengine=nbd",
                f"--uri={uri}",
                *words,
                "--bs=1M",
                "--iodepth=4",
                f"--size={size}",
                "--output-format=json",
                f"--output={scratch / 'fill.json'}",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=size / 20e6 + PATIENCE,
        )
