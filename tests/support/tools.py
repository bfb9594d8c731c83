"""Runs other people's programs: nbdinfo, nbdcopy, qemu-img, fio, thin_check.

A missing program fails the test: `scripts/setup` installs them all, and a suite that quietly skips
its oracles proves nothing.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

# Generous: a slow machine must not fail a test. Nothing waits this long on purpose.
PATIENCE = 300.0

# Debian keeps thin_check in /usr/sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def program(name: str) -> str:
    """The path of a program; fails the test when it is not installed."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.fail(f"{name} is not installed: run scripts/setup")
    return found


def run(
    *command: str,
    check: bool = True,
    timeout: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    stdin: str | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end and captures what it says; with `check`, it must succeed.

    Raises subprocess.CalledProcessError with the program's own words in a note.
    """
    argv = [*prefix, *command]
    done = subprocess.run(
        [program(argv[0]), *argv[1:]],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=dict(env) if env is not None else None,
        cwd=cwd,
        input=stdin if stdin is not None else "",
    )
    if check and done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        error.add_note(f"stdout: {done.stdout}\nstderr: {done.stderr}")
        raise error
    return done


def run_json(*command: str) -> Any:
    """Runs a program that prints one JSON document, and parses it."""
    return json.loads(run(*command).stdout)


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and which is no other test's from now on.

    Below those that the kernel gives to whoever connects, who might be given it meanwhile.
    """
    for port in range(20000, 32768):
        # A name that is gone with this process marks it for tests in others.
        with socket.socket(socket.AF_UNIX) as claim, socket.socket() as probe:
            try:
                claim.bind(f"\0thinpoold-tests-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            claim.detach()
            return port
    raise AssertionError("no port is free")
