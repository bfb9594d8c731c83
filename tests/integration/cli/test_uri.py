"""thinpool uri."""

import json
from pathlib import Path
from urllib.parse import unquote

from tests.integration.cli.outcomes import MIB, fill, refused, volume, wrong_usage
from tests.support.pools import PoolRig
from tests.support.tools import run


def test_the_uri_alone_on_one_line(rig: PoolRig) -> None:
    rig.create("a", "1M")
    line = rig.cli("uri", "a")
    assert line.startswith("nbd+unix:///a?socket=/")
    assert line.endswith("nbd.sock\n")
    assert line.count("\n") == 1
    stable = rig.cli("uri", "a", "--stable")
    uuid = volume(rig, "a")["uuid"]
    assert stable.startswith(f"nbd+unix:///{uuid}%2F1?socket=/")
    assert rig.json("uri", "a") == {"uri": line.strip(), "stable_uri": stable.strip()}


def test_clients_take_it(running: PoolRig) -> None:
    running.create("größe & 50%?", "3M")
    assert run("nbdinfo", "--size", running.uri("größe & 50%?")).stdout.strip() == str(3 << 20)


def test_clients_take_a_stable_one(running: PoolRig, tmp_path: Path) -> None:
    running.create("s", "3M")
    fill(running, "s", MIB)
    uri = running.cli("uri", "s", "--stable").strip()
    assert run("nbdinfo", "--size", uri).stdout.strip() == str(3 << 20)
    copy = tmp_path / "copy"
    run("nbdcopy", uri, str(copy))
    assert copy.read_bytes()[:MIB] == b"x" * MIB
    # Of its own syntax, too.
    server, _, socket = uri.partition("?socket=")
    export = unquote(server.removeprefix("nbd+unix:///"))
    options = f"driver=nbd,server.type=unix,server.path={socket},export={export}"
    told = run("qemu-img", "info", "--output=json", "--image-opts", options).stdout
    assert json.loads(told)["virtual-size"] == 3 << 20
    assert "3145728" in run("qemu-img", "info", "--output=json", uri).stdout


def test_refusals(rig: PoolRig) -> None:
    refused(rig, "uri", "nobody", says="no volume")
    wrong_usage(rig, "uri", says="missing argument 'VOL'")
