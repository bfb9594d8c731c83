"""Pools that older programs left open, and hold what they held; see `packed`."""

from pathlib import Path

import pytest

from tests.formats.packed import CONTENT, HERE, NOTED, content, unpack
from tests.support.pools import PoolRig
from thinpoold import boot
from thinpoold.pool import Pool

NAMES = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))
KILLED = [name for name in NAMES if name.endswith(".killed")]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_served_with_all_it_held(tmp_path: Path, name: str) -> None:
    pool = PoolRig(unpack(name, tmp_path))
    try:
        pool.start()
        volumes = pool.volumes()
        assert set(volumes) == {"vol", "snap"}
        assert volumes["vol"]["labels"] == {"purpose": "formats"}
        assert volumes["snap"]["origin"] == "vol"
        settings = pool.json("get", "--volume", "vol")["settings"]
        assert (settings["iops"], settings["allow"]) == (5000, "user:0")
        for volume, blocks in CONTENT.items():
            noted = NOTED if volume == "vol" and name in KILLED else {}
            with pool.connect(volume) as client:
                assert client.read_all() == content(blocks | noted)
                client.write(15 << 18, b"and goes on")
    finally:
        complaints = pool.dispose()
    assert complaints == []


@pytest.mark.parametrize("name", KILLED)
def test_what_was_flushed_is_made_good_in_any_boot(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "boot_id"
    other.write_text(f"{1:032x}\n")
    monkeypatch.setattr(boot, "BOOT_ID", other)
    monkeypatch.setattr(boot, "_is_mounted_over", lambda path: False)
    directory = unpack(name, tmp_path)
    # That it has notes which no commit holds is what it is for.
    looked = Pool.open(directory, looking=True)
    record = looked.registry.get("vol")
    (noted,) = NOTED
    assert looked.metadata.lookup(record.dev_id, noted) is None
    looked.close()
    pool = Pool.open(directory)
    volume = pool.open_volume("vol")
    buffer = bytearray(volume.size)
    volume.pread(buffer, 0)
    assert buffer == content(CONTENT["vol"] | NOTED)
    pool.close_volume(volume)
    pool.close()
