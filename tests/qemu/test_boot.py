"""Virtual machines that boot from thin volumes, in QEMU's software emulation."""

from pathlib import Path

import pytest

from tests.qemu.conftest import GuestMaker
from tests.support.pools import PoolRig
from tests.support.tools import run

MIB = 1 << 20

pytestmark = pytest.mark.slow


def used(pool: PoolRig, volume: str) -> int:
    """Bytes of the pool in use, once all that the guest has sent is committed."""
    with pool.connect(volume) as client:
        client.flush()
    return int(pool.status()["data"]["used"])


def judge(pool: PoolRig, volume: str, folder: Path) -> Path:
    """The volume as a file, whose file system e2fsck has nothing against."""
    image = folder / f"{volume}.raw"
    run("qemu-img", "convert", "-O", "raw", pool.uri(volume), str(image))
    run("e2fsck", "-fn", str(image))
    return image


def content(image: Path, path: str) -> str:
    """A file of an ext4 image, read by debugfs."""
    return run("debugfs", "-R", f"cat {path}", str(image)).stdout.strip()


def test_a_guest_and_its_live_snapshot_side_by_side(
    pool: PoolRig, system: str, boot: GuestMaker, tmp_path: Path
) -> None:
    first = boot(system)
    assert "/dev/vda / ext4 rw" in first.run("cat /proc/mounts")
    assert first.run("cat /who") == "the volume"
    first.run("dd if=/dev/urandom of=/kept bs=1M count=8 2>/dev/null && sync")
    kept = first.run("sha256sum /kept")

    first.run("sh /counting & counting=$!")
    durable = int(first.wait_for(r"counted (\d+)\.")[1])
    pool.snapshot(system, "beside")
    # Still at it: the snapshot neither stopped the guest nor failed a write.
    first.wait_for(rf"counted {durable + 1}\.")
    first.wait_for(r"counted \d+\.")

    second = boot("beside")
    assert second.run("sha256sum /kept") == kept
    seen = int(second.run("cat /count"))
    assert durable <= seen
    second.run("echo the snapshot >/who && echo 2 >/second && sync")
    first.run("kill $counting; wait $counting; true")
    assert int(first.run("cat /count")) > seen
    first.run("echo 1 >/first && sync")
    # Not from the page cache: each reads its own disk again.
    for guest in (first, second):
        guest.run("echo 3 >/proc/sys/vm/drop_caches")
    assert first.run("cat /who; ls /first; test ! -e /second") == "the volume\n/first"
    assert second.run("cat /who; ls /second; test ! -e /first") == "the snapshot\n/second"
    assert first.run("sha256sum /kept") == kept

    first.power_off()
    second.power_off()
    assert content(judge(pool, system, tmp_path), "/who") == "the volume"
    assert content(judge(pool, "beside", tmp_path), "/who") == "the snapshot"


def test_a_guest_gives_space_back(pool: PoolRig, system: str, boot: GuestMaker) -> None:
    guest = boot(system)
    before = used(pool, system)
    guest.run("dd if=/dev/urandom of=/big bs=1M count=48 2>/dev/null && sync")
    full = used(pool, system)
    assert full >= before + 48 * MIB
    guest.run("rm /big && sync && fstrim /")
    assert used(pool, system) <= full - 44 * MIB


def test_a_guest_knows_the_granularity_that_its_device_is_given(
    pool: PoolRig, system: str, boot: GuestMaker
) -> None:
    """QEMU does not take it from NBD: it is the operator's to say."""
    size = pool.status()["block_size"]
    guest = boot(system, device=f"discard_granularity={size}")
    assert int(guest.run("cat /sys/block/vda/queue/discard_granularity")) == size


def test_zeros_that_a_guest_writes_give_space_back(
    pool: PoolRig, system: str, boot: GuestMaker
) -> None:
    """detect-zeroes=unmap, for a guest that overwrites what it no longer wants."""
    guest = boot(system)
    guest.run("dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null && sync")
    full = used(pool, system)
    guest.run("dd if=/dev/zero of=/big bs=1M count=24 conv=notrunc 2>/dev/null && sync")
    assert used(pool, system) <= full - 20 * MIB
    guest.run("echo 3 >/proc/sys/vm/drop_caches; head -c $((24 << 20)) /dev/zero | cmp - /big")


def test_what_a_snapshot_shares_stays_when_the_guest_trims(
    pool: PoolRig, system: str, boot: GuestMaker
) -> None:
    guest = boot(system)
    guest.run("dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null && sync")
    big = guest.run("sha256sum /big")
    # Frozen, so the snapshot's file system is clean.
    guest.run("fsfreeze --freeze /")
    pool.snapshot(system, "frozen")
    guest.run("fsfreeze --unfreeze /")
    before = used(pool, system)
    guest.run("rm /big && sync && fstrim /")
    assert used(pool, system) >= before
    guest.power_off()

    pool.cli("rollback", system, "frozen", "--discard-current")
    assert boot(system).run("sha256sum /big") == big


def test_a_daemon_killed_and_started_is_a_pause(
    pool: PoolRig, system: str, boot: GuestMaker, tmp_path: Path
) -> None:
    guest = boot(system, "reconnect-delay=300")
    guest.run("dd if=/dev/urandom of=/dev/data bs=1M count=8 2>/dev/null")
    pool.kill()
    end = guest.send("cp /dev/data /copy && sync && echo 3 >/proc/sys/vm/drop_caches")
    pool.start()
    assert guest.wait_for(end)[1] == "0"
    guest.run("cmp /dev/data /copy")
    assert "rror" not in guest.run("dmesg | grep -e vda -e EXT4")
    guest.power_off()
    judge(pool, system, tmp_path)
