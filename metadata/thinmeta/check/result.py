"""What a check found.

Thread safety: `Findings` belongs to the one thread that checks; results are frozen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

#: Enough to see what happened; a pool whose every count is off would fill memory with the rest.
MAX_PROBLEMS: Final = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    `kind` is one word for programs: that of the `Corrupt` which told of it ('checksum', 'blocknr',
    'missing', 'encoding', 'superblock', 'store', 'record'), or 'io', 'node', 'mapping', 'device',
    'bitmap', 'index', 'count' (a block's count is not that of its owners), 'leak' (a block without
    an owner is counted), 'orphan' (a block that is not counted is in the store), 'mark' (the data
    device is not the pool's, or another copy).
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.kind}]"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdict, and what was counted on the way. Sizes in blocks.

    `complete` says that nothing was out of reach: otherwise the numbers are of what could be read,
    and counts were only compared where they are certain to be wrong.
    """

    errors: list[Problem]
    complete: bool = False
    needs_check: bool = False
    transaction_id: int = 0
    devices: int = 0
    mappings: int = 0
    data_blocks: int = 0
    data_used: int = 0
    metadata_blocks: int = 0
    metadata_used: int = 0
    leaked_blocks: int = 0
    leaked_metadata_blocks: int = 0

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists, for JSON."""
        return {"ok": self.ok, **asdict(self)}


class Findings:
    """Problems as they are found, up to a bound."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._dropped = 0

    def add(self, kind: str, where: str, message: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(kind, where, message))
        else:
            self._dropped += 1

    def problems(self) -> list[Problem]:
        if not self._dropped:
            return list(self._problems)
        more = Problem("more", "metadata", f"and {self._dropped} problems more")
        return [*self._problems, more]
