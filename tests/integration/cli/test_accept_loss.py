"""thinpool accept-loss."""

from __future__ import annotations

import pytest

from tests.integration.cli.outcomes import MIB, fill, refused, volume, wrong_usage
from tests.support.client import NbdError
from tests.support.pools import PoolRig
from thinpoold.errors import DeviceError
from thinpoold.pool import Pool


@pytest.fixture
def lossy(pool: PoolRig) -> PoolRig:
    """A running pool whose data device failed under a write to `v` before it was started anew."""
    for name in ("v", "w"):
        pool.create(name, "4M")
        fill(pool, name, MIB)
    pool.stop()
    opened = Pool.open(pool.directory)
    opened.open_volume("v").pwrite(b"lost" * 1024, 2 * MIB)
    opened.device.fail(DeviceError("the disk is gone", 5))
    with pytest.raises(DeviceError):
        opened.close()
    pool.start()
    return pool


def test_a_volume_is_not_served_before_its_loss_is_accepted(lossy: PoolRig) -> None:
    with pytest.raises(NbdError):
        lossy.connect("v")
    assert lossy.logged("accept-loss v")
    with lossy.connect("w") as client:
        assert client.read(0, 1) == b"x"
    assert (volume(lossy, "v")["lost"], volume(lossy, "w")["lost"]) == (True, False)
    assert lossy.status()["lost"] == ["v"]
    assert "v: something is lost; see 'thinpool accept-loss'" in lossy.cli("status")
    told = lossy.cli("accept-loss", "v", "--dry-run")
    assert "may be lost" in told
    with pytest.raises(NbdError):
        lossy.connect("v")
    assert lossy.cli("accept-loss", "v").endswith("clients may open v again\n")
    with lossy.connect("v") as client:
        assert client.read(0, 1) == b"x"
        assert client.read(2 * MIB, 4) == bytes(4)
    assert volume(lossy, "v")["generation"] == 2
    assert lossy.status()["lost"] == []


def test_on_a_stopped_pool(lossy: PoolRig) -> None:
    lossy.stop()
    answer = lossy.json("accept-loss", "v")
    assert (answer["volumes"][0]["name"], answer["dry_run"]) == ("v", False)
    assert answer["volumes"][0]["losses"][0]["why"]
    lossy.start()
    with lossy.connect("v") as client:
        assert client.read(0, 1) == b"x"


def test_refusals(lossy: PoolRig) -> None:
    refused(lossy, "accept-loss", "nobody", says="no volume")
    refused(lossy, "accept-loss", "v", "w", says="nothing of volume 'w' is lost")
    assert lossy.status()["lost"] == ["v"]
    wrong_usage(lossy, "accept-loss", says="missing argument 'VOL...'")
