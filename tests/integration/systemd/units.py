"""The units as they are installed, and what systemd itself makes of them without running them.

Nothing here touches the machine's own systemd: units are installed below a directory, and systemd's
programs are told to look there.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.pools import BIN
from tests.support.tools import run

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "systemd" / "examples"
SYSTEM_UNITS = "/lib/systemd/system"
FSTAB_GENERATOR = "/lib/systemd/system-generators/systemd-fstab-generator"
NOBODY = 65534


def install_systemd(
    *words: str, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs scripts/install-systemd."""
    environment = {key: value for key, value in os.environ.items() if key != "DESTDIR"}
    script = str(ROOT / "scripts" / "install-systemd")
    return run(script, *words, check=check, env={**environment, **env})


@dataclass
class Machine:
    """A root directory with the units installed below /usr, and nothing else of a system."""

    root: Path
    generated: list[Path] = field(default_factory=list)

    def install(self) -> None:
        install_systemd("--prefix", "/usr", "--destdir", str(self.root), "--bindir", str(BIN))
        # As it is after Debian's systemd was installed.
        wanted = self.root / "etc/systemd/system/multi-user.target.wants/remote-fs.target"
        wanted.parent.mkdir(parents=True)
        wanted.symlink_to(f"{SYSTEM_UNITS}/remote-fs.target")

    @property
    def units(self) -> Path:
        return self.root / "usr/lib/systemd/system"

    @property
    def environment(self) -> dict[str, str]:
        """Makes systemd's programs find these units, and the system's own after them."""
        folders = [self.root / "etc/systemd/system", *self.generated, self.units, SYSTEM_UNITS]
        return {
            "PATH": os.environ["PATH"],
            "SYSTEMD_UNIT_PATH": ":".join(map(str, folders)),
            "SYSTEMD_LOG_TARGET": "console",
            "SYSTEMD_COLORS": "0",
        }

    def drop_in(self, unit: str, example: str) -> None:
        folder = self.root / "etc/systemd/system" / f"{unit}.d"
        folder.mkdir(parents=True)
        (folder / example).write_text((EXAMPLES / example).read_text())

    def enable(self, *units: str) -> None:
        run("systemctl", f"--root={self.root}", "enable", *units)

    def mount_units(self, fstab: str) -> None:
        """Makes of an fstab the units that systemd makes of it when it boots."""
        table = self.root / "etc/fstab"
        table.write_text(fstab)
        folder = self.root / "generated"
        folder.mkdir()
        environment = {**self.environment, "SYSTEMD_FSTAB": str(table), "SYSTEMD_IN_INITRD": "0"}
        environment["SYSTEMD_PROC_CMDLINE"] = ""
        run(FSTAB_GENERATOR, *[str(folder)] * 3, env=environment)
        self.generated.append(folder)

    def boot_plan(self, target: str) -> "Plan":
        """What systemd would do to reach `target` from nothing, by its own account."""
        self._let_everybody_read()
        # It refuses to be tried out by root.
        prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        done = run(
            "/lib/systemd/systemd",
            *("--test", "--system", f"--unit={target}", "--no-pager"),
            prefix=prefix,
            env={**self.environment, "HOME": "/nonexistent"},
        )
        return Plan.parse(done.stdout + done.stderr)

    def _let_everybody_read(self) -> None:
        for path in [self.root, *self.root.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


# As systemd writes it where it knows that its reader takes UTF-8.
ARROW = "(?:->|→)"


@dataclass
class Plan:
    """Units with their dependencies by kind, the units that have a start job, and complaints."""

    dependencies: dict[str, dict[str, set[str]]]
    started: set[str]
    complaints: list[str]

    @classmethod
    def parse(cls, text: str) -> "Plan":
        dependencies: dict[str, dict[str, set[str]]] = {}
        unit: dict[str, set[str]] = {}
        for line in text.splitlines():
            if found := re.fullmatch(rf"\s*{ARROW} Unit (.*):", line):
                unit = dependencies.setdefault(found[1], {})
            elif found := re.fullmatch(r"\s+(\w+): (\S+) \((?:origin|destination)-.*\)", line):
                unit.setdefault(found[1], set()).add(found[2])
        started = set(re.findall(rf"Action: (\S+) {ARROW} start", text))
        assert dependencies, text
        assert started, text
        # About our units, or about a cycle through anybody's.
        complaint = re.compile(r"ordering cycle|thinpool.*(?:Unknown|ignoring|Failed|Invalid)")
        complaints = [line for line in text.splitlines() if complaint.search(line)]
        return cls(dependencies, started, complaints)

    def of(self, unit: str, *kinds: str) -> set[str]:
        return {other for kind in kinds for other in self.dependencies[unit].get(kind, ())}

    def comes_before(self, first: str, second: str) -> bool:
        """Whether systemd starts `first` before `second`, and so stops it after, by an edge."""
        return second in self.of(first, "Before") or first in self.of(second, "After")

    def taken_along(self, unit: str, kinds: Iterable[str]) -> set[str]:
        """The units that follow `unit` by dependencies of these kinds, directly or not."""
        found: set[str] = set()
        ahead = [unit]
        while ahead:
            here = ahead.pop()
            new = self.of(here, *kinds) - found if here in self.dependencies else set()
            found |= new
            ahead.extend(new)
        return found
