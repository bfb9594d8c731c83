"""Jobs for the tests of the machine itself."""

import ctypes
import os

from tests.uml.inside.commands import run, shell


def add(left: int, right: int) -> tuple[int, str]:
    """Shows that values come and go, and which kernel it is."""
    return left + right, os.uname().release


def fail(reason: str) -> None:
    """Raises."""
    raise ValueError(reason)


def vanish() -> None:
    """Ends without a result."""
    os._exit(7)


def hang() -> None:
    """Never ends, and neither does what it starts."""
    shell("echo hanging > /dev/console; sleep 1000000 & sleep 1000000")


def cut_power() -> None:
    """Ends the machine: nothing is written out, nothing reported."""
    ctypes.CDLL(None).reboot(0x4321FEDC)


def upset_the_kernel() -> None:
    """Asks for a device that cannot be, of which the kernel logs an error."""
    try:
        run("dmsetup", "create", "bad", "--table", "0 8 linear /dev/none 0")
    except AssertionError:
        pass
