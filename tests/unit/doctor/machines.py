"""Machines that lack things."""

from collections.abc import Mapping
from pathlib import Path

from thinpoold.doctor.machine import Machine

NO_LIMIT = -1


def machine(
    tmp_path: Path,
    programs: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    limits: Mapping[str, int] | None = None,
) -> Machine:
    """A machine with these programs, shell scripts all, and these files."""
    binaries, root = tmp_path / "bin", tmp_path / "root"
    for directory in (binaries, root):
        directory.mkdir()
    for name, script in (programs or {}).items():
        # Whatever a script calls is called by its path.
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    for name, text in (files or {}).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = {"files": NO_LIMIT, "address space": NO_LIMIT}
    return Machine(str(binaries), root, {**found, **(limits or {})})
