"""All checks, in the order in which their findings are told."""

from collections.abc import Iterator
from pathlib import Path

from thinpoold.control.codes import one_line
from thinpoold.doctor import filesystem, kernel, limits, programs
from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine
from thinpoold.errors import NoSuchPool
from thinpoold.paths import default_directory


def examine(machine: Machine, directory: Path | None = None) -> Iterator[Finding]:
    """Yield what is found, one after the other; `directory` is where pools are to lie."""
    yield from programs.nbdkit(machine)
    yield from limits.limits(machine)
    try:
        yield from filesystem.filesystem(directory or default_directory())
    except NoSuchPool as error:
        purpose = "pools that are named without a path"
        yield Finding("home directory", False, "none", purpose, one_line(error))
    yield kernel.nbd(machine)
    yield from kernel.fuse(machine)
    yield kernel.loop(machine)
    yield from programs.tools(machine)
    yield from programs.fast_path(machine)
    yield from programs.bounded_buffers(machine)
    yield from programs.service_manager(machine)


def can_serve(findings: list[Finding]) -> bool:
    """Whether nothing is lacking that serving a pool takes."""
    return all(finding.ok for finding in findings if finding.needed)
