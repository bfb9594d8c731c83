"""thinpool attach and detach: what is refused, and --user with FUSE and a loop device.

The kernel's nbd is tried in tests/uml.
"""

import errno
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import refused, volume, wrong_usage
from tests.support.pools import PoolRig
from tests.support.tools import program, run
from thinpoold.attach import fuse, records, verbs
from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.paths import pool_paths

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this machine has no FUSE"
)
no_nbd = pytest.mark.skipif(Path("/sys/module/nbd").exists(), reason="this kernel has nbd")


@pytest.fixture
def attached(pool: PoolRig) -> Iterator[PoolRig]:
    """A running pool whose volume `v` is attached with --user."""
    pool.create("v", "32M")
    pool.cli("attach", "v", "--user")
    yield pool
    if not pool.running:
        pool.start()
    if volume(pool, "v")["attached"]:
        pool.cli("detach", "v", "--unmount")


def device(rig: PoolRig) -> str:
    ((fact,),) = [entry["attached"] for entry in rig.volumes().values()]
    return str(fact["device"])


@no_nbd
def test_without_the_module_it_says_how_to_get_it(pool: PoolRig) -> None:
    pool.create("v", "1M")
    refused(pool, "attach", "v", says="modprobe nbd" if os.geteuid() == 0 else "only root")


def test_refusals(pool: PoolRig) -> None:
    pool.create("v", "1M")
    refused(pool, "attach", "v", "--device", "/dev/sda", says="/dev/sda is no nbd device")
    refused(pool, "attach", "v", "--user", "--mount", "/no/such", says="no such directory")
    refused(pool, "attach", "none", "--user", says="no volume")
    refused(pool, "attach", "v", "--refresh", says="is not attached")
    refused(pool, "detach", "v", says="is not attached")
    refused(pool, "detach", "/dev/nbd7", says="nothing is attached as /dev/nbd7")
    wrong_usage(pool, "attach", "v", "--refresh", "--read-only", says="exclude each other")
    wrong_usage(pool, "attach", "v", "--refresh", "--timeout", "5", says="exclude each other")
    wrong_usage(pool, "attach", "v", "--user", "--device", "/dev/nbd0", says="exclude each other")
    wrong_usage(pool, "attach", "v", "-o", "noatime", says="needs --mount")
    wrong_usage(pool, "attach", "v", "--connections", "0", says="connections")
    wrong_usage(pool, "attach", "v", "--timeout", "-5", says="-5 is not in the range")


def test_a_pool_that_does_not_run(pool: PoolRig) -> None:
    pool.create("v", "1M")
    pool.stop()
    refused(pool, "attach", "v", "--user", says="not running")


@needs_fuse
def test_a_user_s_device_holds_data_and_is_listed(attached: PoolRig) -> None:
    path = device(attached)
    with open(path, "r+b", buffering=0) as opened:
        os.pwrite(opened.fileno(), b"thin" * 1024, 1 << 20)
        os.fsync(opened.fileno())
    with attached.connect("v") as client:
        assert client.read(1 << 20, 4096) == b"thin" * 1024
    assert "ATTACHED" in attached.cli("list")
    assert path in attached.cli("info", "v")
    refused(attached, "attach", "v", "--user", says=f"is attached already, as {path}")
    attached.cli("detach", path)
    assert volume(attached, "v")["attached"] == []
    assert "ATTACHED" not in attached.cli("list")


@needs_fuse
def test_a_device_in_use_is_not_detached(attached: PoolRig) -> None:
    path = device(attached)
    with open(path, "rb") as opened, subprocess.Popen(["sleep", "1000"], stdin=opened) as user:
        opened.close()
        try:
            refused(attached, "detach", "v", says=f"open by process {user.pid} (sleep)")
        finally:
            user.kill()
    attached.cli("detach", "v")


@needs_fuse
def test_writes_wait_for_a_daemon_that_is_started_again(attached: PoolRig) -> None:
    path = device(attached)
    attached.stop()
    command = ["dd", "if=/dev/urandom", f"of={path}", "bs=64K", "count=32", "conv=fsync,notrunc"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as writer:
        attached.start()
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    with open(path, "rb") as opened:
        written = opened.read(32 << 16)
    with attached.connect("v") as client:
        assert client.read(0, 1 << 21) == written


@needs_fuse
def test_a_user_s_device_learns_a_new_size_while_nobody_uses_it(attached: PoolRig) -> None:
    path = device(attached)
    attached.cli("resize", "v", "48M")
    with open(path, "rb") as opened, subprocess.Popen(["sleep", "1000"], stdin=opened) as user:
        opened.close()
        try:
            refused(attached, "attach", "v", "--refresh", says="and learns no new size meanwhile")
        finally:
            user.kill()
    attached.cli("rename", "v", "w")
    answer = attached.json("attach", "w", "--refresh")
    try:
        assert (answer["volume"], answer["size"]) == ("w", 48 << 20)
        assert answer["device"] == device(attached)
        with open(device(attached), "rb") as opened:
            assert opened.seek(0, os.SEEK_END) == 48 << 20
    finally:
        attached.cli("rename", "w", "v")


@needs_fuse
def test_what_cannot_be_made_anew_is_said_to_be_gone(attached: PoolRig, tmp_path: Path) -> None:
    # An nbdfuse that serves nothing.
    (tmp_path / "nbdfuse").symlink_to(program("false"))
    path = device(attached)
    broken = ("env", f"PATH={tmp_path}:{os.environ['PATH']}")
    done = attached.run("attach", "v", "--refresh", prefix=broken)
    assert done.returncode == 1
    assert f"{path} is detached, and cannot be attached anew: nbdfuse failed" in done.stderr
    assert volume(attached, "v")["attached"] == []
    remedy = done.stderr.rpartition("attach it with '")[2].rstrip("'\n")
    assert shlex.split(remedy)[0] == "thinpool"
    attached.cli(*shlex.split(remedy)[3:])
    assert volume(attached, "v")["attached"] != []


@needs_fuse
def test_nothing_is_left_of_an_attachment_that_cannot_be_recorded(
    pool: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("v", "32M")
    served: list[records.Attachment] = []

    def save(attachment: records.Attachment) -> None:
        assert os.path.exists(attachment.device)
        served.append(attachment)
        raise OSError(errno.ENOSPC, "No space left on device", "/the/record")

    monkeypatch.setattr(records, "save", save)
    uuid = str(volume(pool, "v")["uuid"])
    with pytest.raises(AttachFailed, match="/the/record: No space left"):
        fuse.attach(
            pool=str(pool.directory),
            volume="v",
            uuid=uuid,
            generation=1,
            uri=pool.uri("v"),
            read_only=False,
            patience=0,
        )
    (attachment,) = served
    assert not attachment.is_kept
    assert not Path(attachment.file).parent.exists()
    assert attachment.file not in map(fuse.loop_file, fuse.loop_devices())
    pool.await_released("v")


@needs_fuse
def test_what_was_detached_meanwhile_is_not_made_anew(attached: PoolRig) -> None:
    (before,) = records.attachments(attached.directory)
    attached.cli("detach", "v")
    with pytest.raises(AttachRefused, match="no longer attached"):
        verbs.refresh(pool_paths(attached.directory), before)
    assert volume(attached, "v")["attached"] == []


@needs_fuse
def test_an_attached_volume_is_not_taken_away_while_the_daemon_is_stopped(
    attached: PoolRig,
) -> None:
    path = device(attached)
    attached.snapshot("v", "s")
    attached.stop()
    says = f"volume 'v' is attached as {path}: detach it first"
    refused(attached, "delete", "s", "v", says=says)
    refused(attached, "rollback", "v", "s", says=says)
    refused(attached, "resize", "v", "1M", "--shrink", says=says)
    attached.cli("delete", "v", "--dry-run")
    attached.cli("resize", "v", "64M", "--shrink")
    attached.cli("rename", "v", "w")
    refused(attached, "delete", "w", says=f"volume 'w' is attached as {path}")
    attached.cli("rename", "w", "v")
    attached.cli("delete", "s")


@needs_fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_mounting_and_the_mount_point_in_the_refusal(attached: PoolRig, tmp_path: Path) -> None:
    path = device(attached)
    if not path.startswith("/dev/loop"):
        pytest.skip("no loop device here")
    run("mkfs.ext4", "-q", path)
    run("mount", path, str(tmp_path))
    (tmp_path / "file").write_text("kept")
    says = f"{path} is mounted on {tmp_path}: unmount it first"
    refused(attached, "detach", "v", says=says)
    assert volume(attached, "v")["attached"][0]["mounts"] == [str(tmp_path)]
    assert f"{path} on {tmp_path}" in attached.cli("list")
    attached.cli("detach", "v", "--unmount")
    attached.snapshot("v", "s")
    attached.cli("attach", "s", "--user", "--read-only", "--mount", str(tmp_path))
    try:
        assert (tmp_path / "file").read_text() == "kept"
    finally:
        attached.cli("detach", "s", "--unmount")


@pytest.fixture
def mounted(attached: PoolRig, tmp_path: Path) -> Iterator[PoolRig]:
    """`attached`, with a file system on it that has something to write; mounted at `tmp_path`."""
    path = device(attached)
    if os.geteuid() != 0 or not path.startswith("/dev/loop"):
        pytest.skip("only root may mount, and a loop device")
    run("mkfs.ext4", "-q", path)
    run("mount", path, str(tmp_path))
    (tmp_path / "file").write_text("unwritten")
    yield attached
    run("umount", "--lazy", str(tmp_path), check=False)


def free_again(rig: PoolRig, path: str, point: Path) -> None:
    assert not os.path.ismount(point)
    assert path not in [str(one.path) for one in fuse.loop_devices() if fuse.loop_file(one)]
    assert records.attachments(rig.directory) == []


@needs_fuse
def test_a_daemon_that_is_gone_is_not_waited_for(mounted: PoolRig, tmp_path: Path) -> None:
    path = device(mounted)
    mounted.kill()
    refused(mounted, "detach", "v", "--unmount", says="does not answer, and what is not written")
    assert os.path.ismount(tmp_path)
    refused(mounted, "detach", "v", "--force", says=f"mounted on {tmp_path}: unmount it first")
    mounted.cli("detach", "v", "--unmount", "--force")
    free_again(mounted, path, tmp_path)
    mounted.start()
    # What is there again is sound, and can be attached.
    path = mounted.cli("attach", "v", "--user").strip()
    run("e2fsck", "-fp", path, check=False)
    run("e2fsck", "-fn", path)


@needs_fuse
def test_nor_one_that_hangs(mounted: PoolRig, tmp_path: Path) -> None:
    path = device(mounted)
    os.kill(mounted.pid, signal.SIGSTOP)
    try:
        refused(mounted, "detach", path, "--unmount", says="does not answer")
        with open(tmp_path / "file", "rb") as used:
            mounted.cli("detach", path, "--unmount", "--force")
            assert not os.path.ismount(tmp_path)
            assert used.fileno() >= 0
        free_again(mounted, path, tmp_path)
    finally:
        os.kill(mounted.pid, signal.SIGCONT)


@needs_fuse
def test_who_has_a_device_open_gets_errors_when_it_is_taken(attached: PoolRig) -> None:
    path = device(attached)
    with open(path, "rb", buffering=0) as opened:
        refused(attached, "detach", "v", says=f"open by process {os.getpid()}")
        attached.cli("detach", "v", "--force")
        with pytest.raises(OSError, match=r"Input/output error|not connected|No such device"):
            os.pread(opened.fileno(), 4096, 16 << 20)
    assert records.attachments(attached.directory) == []


@needs_fuse
def test_what_an_nbdfuse_that_died_leaves_is_detached(attached: PoolRig) -> None:
    (attachment,) = records.attachments(attached.directory)
    handle = os.pidfd_open(attachment.pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    select.select([handle], [], [])
    os.close(handle)
    refused(attached, "attach", "v", "--user", says="is attached already")
    attached.cli("detach", "v")
    assert records.attachments(attached.directory) == []
    attached.cli("attach", "v", "--user")
    assert Path(device(attached)).exists()
