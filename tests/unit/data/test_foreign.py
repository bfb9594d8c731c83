"""What a data device holds before a pool is made on it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loop import loop_devices
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
    with loop_devices() as loops:
        yield loops.attach(sparse)


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


@pytest.mark.parametrize("offset", [0, MIB - 1, 64 * MIB - MIB, 64 * MIB - 1])
def test_a_byte_at_either_end_of_a_block_device_is_somebodys(loop: Path, offset: int) -> None:
    put(loop, offset, b"x")
    assert "data at its beginning or end" in verdict(loop)


@pytest.mark.parametrize("offset", [MIB, 30 * MIB + 512, 63 * MIB - 16384])
def test_a_run_as_long_as_the_distance_of_two_probes_is_always_found(
    loop: Path, offset: int
) -> None:
    put(loop, offset, b"x" * (64 * MIB // 4096))
    assert "data, at byte " in verdict(loop)


def test_what_lies_between_the_probes_is_not_seen(loop: Path) -> None:
    put(loop, 30 * MIB + 4096, b"x" * 12288)
    assert verdict(loop) == ""


@pytest.mark.parametrize("size", [0, 512, 4096, 4097, MIB, 16 * MIB])
def test_probes_cover_all_of_a_small_device(size: int) -> None:
    covered = {byte for offset in foreign.probes(size) for byte in (offset, offset + 4095)}
    assert covered >= {byte for at in range(0, size, 4096) for byte in (at, at + 4095)}


@pytest.mark.parametrize("size", [16 * MIB + 4096, 64 * MIB + 512, 5 << 40])
def test_probes_are_spread_evenly_over_a_large_one(size: int) -> None:
    places = foreign.probes(size)
    assert len(places) == len(set(places)) == 4096
    assert all(place % 4096 == 0 for place in places)
    ends = [*places[1:], size]
    assert all(end - place <= size // 4096 + 8192 for place, end in zip(places, ends, strict=True))


def test_a_file_system_on_a_block_device_is_somebodys(loop: Path) -> None:
    subprocess.run([program("mkfs.ext4"), "-q", str(loop)], check=True, capture_output=True)
    assert "a signature of ext4" in verdict(loop)


def test_without_blkid_bytes_at_either_end_are_somebodys(
    loop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as hidden:
        without("blkid", hidden, tmp_path / "bin")
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
