"""thinpool export-metadata."""

import json
from pathlib import Path

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import MIB, fill, refused, volume, wrong_usage
from tests.support.pools import PoolRig
from tests.support.thin import thin_check, thin_dump
from thinpoold.paths import pool_paths


def test_the_kernels_tools_take_it(rig: PoolRig, tmp_path: Path) -> None:
    rig.create("a", "1M")
    rig.snapshot("a", "a1")
    image = tmp_path / "image"
    done = rig.run("export-metadata", str(image))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert thin_check(image) == []
    assert volume(rig, "a")["id"] in thin_dump(image).devices


def test_it_holds_the_last_commit_of_a_running_pool(running: PoolRig, tmp_path: Path) -> None:
    running.create("b", "8M")
    image = tmp_path / "image"
    fill(running, "b", MIB)
    with running.connect("b"):
        told = json.loads(running.cli("export-metadata", str(image), "--json"))
    assert told == {"file": str(image), "size": image.stat().st_size}
    device = thin_dump(image).devices[volume(running, "b")["id"]]
    assert set(device.mappings) >= set(range(16))


def test_what_was_flushed_is_in_it_when_the_daemon_died(
    new_pool: PoolMaker, tmp_path: Path
) -> None:
    rig = new_pool("64M")
    rig.create("b", "8M")
    fill(rig, "b", MIB)
    rig.kill()
    done = rig.run("check")
    assert (done.returncode, done.stdout[:5]) == (0, "sound")
    image = tmp_path / "image"
    rig.cli("export-metadata", str(image))
    device = thin_dump(image).devices[volume(rig, "b")["id"]]
    assert set(device.mappings) >= set(range(16))
    assert thin_check(image) == []


def test_a_file_that_is_there_is_replaced(rig: PoolRig, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old" * MIB)
    rig.cli("export-metadata", str(image))
    assert thin_check(image) == []


def test_refusals(rig: PoolRig, tmp_path: Path) -> None:
    refused(
        rig, "export-metadata", str(tmp_path / "no/image"), says=f"cannot write {tmp_path}/no/image"
    )
    refused(rig, "export-metadata", str(tmp_path), says=str(tmp_path))
    refused(rig, "export-metadata", "", says="empty")
    wrong_usage(rig, "export-metadata", says="missing argument 'FILE'")


def test_the_pools_own_files_are_refused(rig: PoolRig, tmp_path: Path) -> None:
    link, hard_link = tmp_path / "link", rig.directory / "hard-link"
    link.symlink_to(rig.directory / "data")
    hard_link.hardlink_to(rig.directory / "recent-0" if rig.running else rig.directory / "data")
    there = [path for path in rig.directory.rglob("*") if not path.is_dir()]
    # Those that are there while it runs would be taken for its own at the next start.
    for own in {*there, *pool_paths(rig.directory).files, link}:
        refused(rig, "export-metadata", str(own), says="the pool's own file")
    hard_link.unlink()
    assert rig.json("check")["ok"]
