"""What a data device holds before a pool is made on it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools import SEARCH_PATH, program, run
from thinpoold import foreign
from thinpoold.device import DataDevice
from thinpoold.errors import UserError

MIB = 1 << 20


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    path.touch()
    os.truncate(path, 64 * MIB)
    return path


@pytest.fixture
def loop(sparse: Path) -> Iterator[Path]:
    """A block device over the file."""
    done = run("losetup", "--find", "--show", str(sparse), check=False)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    yield device
    run("losetup", "--detach", str(device))


def verdict(path: Path) -> str:
    """What is said against a device, '' for nothing."""
    device = DataDevice.open(path)
    try:
        foreign.check_empty(device)
    except UserError as error:
        return str(error)
    finally:
        device.close()
    return ""


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def without(tool: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Hide a program from the search."""
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(foreign, "_SYSTEM", ())
    assert not (directory / tool).exists()


def test_holes_and_zeroes_are_nobodys(sparse: Path) -> None:
    assert verdict(sparse) == ""
    put(sparse, 10 * MIB + 5, bytes(3 * MIB))
    assert verdict(sparse) == ""


def test_an_empty_file_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert verdict(path) == ""


@pytest.mark.parametrize("offset", [0, 4095, 33 * MIB + 7, 64 * MIB - 1])
def test_one_byte_is_somebodys(sparse: Path, offset: int) -> None:
    put(sparse, 20 * MIB, bytes(MIB))
    put(sparse, offset, b"\1")
    said = verdict(sparse)
    assert f"{sparse} is not ours: it holds data" in said
    assert "--force" in said


def test_an_empty_block_device_is_nobodys(loop: Path) -> None:
    assert verdict(loop) == ""


def test_old_bytes_without_a_signature_are_nobodys_on_a_block_device(loop: Path) -> None:
    put(loop, 0, b"rubbish" * 1000)
    assert verdict(loop) == ""


def test_a_file_system_on_a_block_device_is_somebodys(loop: Path) -> None:
    subprocess.run([program("mkfs.ext4"), "-q", str(loop)], check=True, capture_output=True)
    assert "a signature of ext4" in verdict(loop)


def test_without_blkid_bytes_at_either_end_are_somebodys(
    loop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as hidden:
        without("blkid", hidden, tmp_path / "bin")
        assert verdict(loop) == ""
        put(loop, 30 * MIB, b"x" * 512)
        assert verdict(loop) == ""
        put(loop, 64 * MIB - 512, b"x" * 512)
        assert "data at its beginning or end" in verdict(loop)


def test_a_signature_as_blkid_tells_it(sparse: Path) -> None:
    assert foreign.signature(str(sparse)) == ""
    run("mkfs.ext4", "-q", "-F", str(sparse))
    assert foreign.signature(str(sparse)) == "a signature of ext4"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 2", ""),
        ("exit 4", None),
        ("exit 8", "several signatures"),
        ("echo PTTYPE=gpt", "a signature of gpt"),
        ("echo UUID=1", "a signature"),
    ],
)
def test_what_blkid_may_say(
    script: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "blkid"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path), SEARCH_PATH)))
    assert foreign.signature("/dev/null") == says
