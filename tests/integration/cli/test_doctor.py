"""thinpool doctor."""

import json
import os
import sys
from pathlib import Path

from tests.support.pools import BIN, PoolRig


def test_this_machine_can_serve(tmp_path: Path) -> None:
    rig = PoolRig(tmp_path / "p")
    done = rig.run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok     thinpoold inside nbdkit  " in done.stdout
    assert "FAILS" not in done.stdout
    for line in done.stdout.splitlines():
        assert line.startswith(("ok     ", "lacks  ", "       for: ", "       do:  ")), line


def test_json(tmp_path: Path) -> None:
    told = PoolRig(tmp_path / "p").json("doctor")
    assert told["ok"] is True
    fields = {"name", "ok", "needed", "found", "purpose", "remedy"}
    assert all(set(finding) == fields for finding in told["findings"])
    assert all(finding["ok"] for finding in told["findings"] if finding["needed"])


def test_a_machine_that_cannot_serve(tmp_path: Path) -> None:
    """One whose nbdkit has no Python plugin."""
    rig = PoolRig(tmp_path / "p")
    fake = tmp_path / "nbdkit"
    fake.write_text('#!/bin/sh\n[ "$*" = --version ] && echo nbdkit 1.32.5\n')
    fake.chmod(0o755)
    # The interpreter's own directory is searched first.
    assert not (Path(sys.executable).parent / "nbdkit").exists()
    rig.env["PATH"] = os.pathsep.join((str(tmp_path), str(BIN), rig.env["PATH"]))
    done = rig.run("doctor")
    assert done.returncode == 1
    assert done.stderr == "thinpool: this machine cannot serve a pool: mend what FAILS\n"
    assert "FAILS  nbdkit's Python plugin" in done.stdout
    assert "do:  apt-get install nbdkit-plugin-python" in done.stdout
    done = rig.run("doctor", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
