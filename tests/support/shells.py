"""An interactive shell on a terminal of its own, to press Tab in.

`complete(line)` types a line, presses Tab, and lets the shell itself say which words it then has.

Thread-safety: one thread.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.support.tools import PATIENCE, program

COMMANDS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "--private", "-i"),
}
PREPARE = {
    "bash": 'eval "$(thinpool completion bash)"',
    "zsh": 'bindkey -e; autoload -Uz compinit; compinit -u -D; eval "$(thinpool completion zsh)"',
    # What was typed before must not be offered again.
    "fish": "set -g fish_autosuggestion_enabled 0; thinpool completion fish | source",
}
# Said by the shell: what it echoes has a sum to do, what it prints the result.
SUM = {"bash": "$((1+1))", "zsh": "$((1+1))", "fish": "(math 1+1)"}
BEGIN_OF_LINE, END_OF_LINE, TAB = "\x01", "\x05", "\t"


class Shell:
    """A shell that completes `thinpool` and `thinpoold`."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self._read = b""
        self._terminal, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        command = COMMANDS[name]
        self._process = subprocess.Popen(
            # A session of its own, with this terminal, or there is no job control.
            [program("setsid"), "--ctty", program(command[0]), *command[1:]],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**env, "TERM": "dumb", "LC_ALL": "C.UTF-8"},
        )
        os.close(inside)
        self._type(f"{PREPARE[name]}; echo READY-{SUM[name]}\n")
        self._until("READY-2")

    def complete(self, line: str, more: str = "") -> list[str]:
        """The words of the command line that `line` and Tab make, with `more` typed behind."""
        after = f" ; echo END-{SUM[self.name]}\n"
        self._type(f"{line}{TAB}{more}{BEGIN_OF_LINE}printf '<%s>' {END_OF_LINE}{after}")
        said = self._until("END-2")
        match = re.search(r"<thinpoold?>.*>\s*$", said)
        assert match is not None, said
        return re.findall("<([^>]*)>", match[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._terminal)

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _until(self, mark: str) -> str:
        """What the shell wrote up to `mark`."""
        deadline = time.monotonic() + PATIENCE
        while mark.encode() not in self._read:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._terminal], [], [], left)
            assert ready, f"{self.name} did not say {mark}: {self._read!r}"
            self._read += os.read(self._terminal, 1 << 16)
        said, _, self._read = self._read.partition(mark.encode())
        return said.decode("utf-8", "replace")
