"""The verbs: what an administrator can do to a pool and ask of it.

Each is a function of an open pool and the verb's parameters, and returns what its `--json` prints.
Those that change the pool are durable when they return; what is refused has changed nothing. Names
and sizes are checked here, whoever calls.

Invariants

1. What a verb judges still holds when it acts: both happen in one stay in the metadata lock
   (`Pool.changing`). What it has to find out or to wait for outside, it looks at again there.
2. A verb waits for the disk, a name service or the space of a deletion with no lock held but its
   own: `Pool.growing` and `Pool.accepting` let one `grow` and one `accept_loss` wait for another.

Thread-safety: any thread, several at a time.
"""

from thinpoold.admin.connections import disconnect
from thinpoold.admin.facts import find, info, list_volumes, place_of, status, tree
from thinpoold.admin.losses import accept_loss
from thinpoold.admin.memory import memory
from thinpoold.admin.settings import get_settings, grow, set_settings
from thinpoold.admin.snapshots import rollback, snapshot
from thinpoold.admin.volumes import create, delete, rename, resize

__all__ = [
    "accept_loss",
    "create",
    "delete",
    "disconnect",
    "find",
    "get_settings",
    "grow",
    "info",
    "list_volumes",
    "memory",
    "place_of",
    "rename",
    "resize",
    "rollback",
    "set_settings",
    "snapshot",
    "status",
    "tree",
]
