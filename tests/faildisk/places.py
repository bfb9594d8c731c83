"""Where a pool lies on a disk that fails: its data, its directory, or both.

Thread-safety: one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faildisk.disk import failing_disk, file_system
from tests.faildisk.scenario import Scenario, drop_cache
from tests.support.pools import PoolRig

MIB = 1 << 20
PLACES = ("device", "file", "directory", "all", "direct-device", "direct-file")


@contextmanager
def placed(base: Path, place: str) -> Iterator[Scenario]:
    """A pool whose data (`device`, `file`), `directory`, or `all` of it is on a failing disk;
    `direct-`: with cache=bufio."""
    direct, place = place.startswith("direct-"), place.removeprefix("direct-")
    with failing_disk(base / "disk", 256 * MIB) as disk:
        if place == "device":
            rig = PoolRig(base / "pool")
            yield from _lived(Scenario(rig, disk, disk.forget), "64M", disk.device, direct)
            return
        with file_system(disk, base / "mnt") as mounted:
            where = base if place == "file" else mounted
            data = mounted / "data-of-the-pool" if place != "directory" else base / "data-elsewhere"
            scenario = Scenario(PoolRig(where / "pool"), disk, lambda: drop_cache(data))
            yield from _lived(scenario, "64M", str(data), direct)


def _lived(scenario: Scenario, size: str, data: str, direct: bool) -> Iterator[Scenario]:
    scenario.prepare(size, data, cache="bufio" if direct else "page")
    try:
        yield scenario
    finally:
        scenario.heal()
        scenario.kill()
