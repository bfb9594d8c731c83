"""The units, judged by systemd's own programs."""

import json
from pathlib import Path

import pytest

from tests.integration.systemd.units import Machine
from tests.support.tools import run

# Tenths, as systemd-analyze counts; docs/systemd.md has the same figure.
MOST_EXPOSED = 10
INSTANCES = (
    "thinpoold@pool.service",
    "thinpoold@pool.socket",
    r"thinpoold@my\x2dpool.service",
    "thinpool-attach@pool-volume.service",
    r"thinpool-attach@my\x2dpool-my\x20volume.service",
    "thinpoold.target",
)


def verify(machine: Machine, *units: str) -> tuple[int, str]:
    done = run(
        "systemd-analyze", "verify", "--man=no", *units, check=False, env=machine.environment
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unit", INSTANCES)
def test_systemd_has_no_complaint(machine: Machine, unit: str) -> None:
    assert verify(machine, unit) == (0, "")


def test_it_would_complain(machine: Machine) -> None:
    service = machine.units / "thinpoold@.service"
    service.write_text(service.read_text().replace("WatchdogSec=2min", "WatchDogSec=soon"))
    _, said = verify(machine, "thinpoold@pool.service")
    assert "WatchDogSec" in said


@pytest.mark.parametrize(
    ("unit", "example"),
    [
        ("thinpoold@pool.service", "block-device.conf"),
        ("thinpoold@pool.service", "data-elsewhere.conf"),
        ("thinpoold@pool.socket", "tcp.conf"),
    ],
)
def test_the_examples_can_be_dropped_in(machine: Machine, unit: str, example: str) -> None:
    machine.drop_in(unit, example)
    assert verify(machine, unit) == (0, "")


def exposure(path: Path, machine: Machine, *words: str) -> tuple[int, str]:
    done = run(
        *("systemd-analyze", "security", "--offline=true", "--no-pager", *words, str(path)),
        check=False,
        env=machine.environment,
    )
    return done.returncode, done.stdout


def test_little_is_left_to_attack(machine: Machine) -> None:
    service = machine.units / "thinpoold@.service"
    status, said = exposure(service, machine, f"--threshold={MOST_EXPOSED}")
    assert status == 0, said
    _, said = exposure(service, machine, "--json=short")
    bad = {check["json_field"] for check in json.loads(said) if check["exposure"]}
    # What is left is what it needs: its own files, UNIX sockets, and to know users apart.
    assert bad <= {
        "DeviceAllow",
        "IPAddressDeny",
        "PrivateUsers",
        "RestrictAddressFamilies_AF_UNIX",
        "RootDirectoryOrRootImage",
    }


def test_the_documented_score_is_the_real_one(machine: Machine) -> None:
    _, said = exposure(machine.units / "thinpoold@.service", machine)
    score = said.split("exposure level")[1].split(": ")[1].split()[0]
    document = Path(__file__).resolve().parents[3] / "docs" / "systemd.md"
    assert f"**{score}**" in document.read_text()


def test_user_and_directories(machine: Machine) -> None:
    run("systemd-sysusers", f"--root={machine.root}", "thinpoold.conf")
    name, *_, home, shell = (machine.root / "etc/passwd").read_text().strip().split(":")
    assert (name, home) == ("thinpoold", "/var/lib/thinpoold")
    assert shell.endswith("nologin")
    done = run("systemd-tmpfiles", f"--root={machine.root}", "--cat-config", check=False)
    assert "/var/lib/thinpoold" in done.stdout
