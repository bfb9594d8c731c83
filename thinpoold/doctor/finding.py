"""What a check found. Pure."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing the machine has or lacks.

    `needed` tells what serving a pool takes from what some commands take. `found` is what is there,
    or what is wrong; `purpose` what it is for; `remedy` the command that mends it.
    """

    name: str
    ok: bool
    found: str
    purpose: str
    remedy: str = ""
    needed: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
