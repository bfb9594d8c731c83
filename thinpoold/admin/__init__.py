"""The verbs: what an administrator can do to a pool and ask of it.

Each is a function of an open pool and the verb's parameters, and returns what its `--json` prints.
Those that change the pool are durable when they return; what is refused has changed nothing. Names
and sizes are checked here, whoever calls. Those that give much back have a `begin_` of their own,
which returns a function for the part that takes its time: others need not wait for that.

Thread-safety: any thread; callers run those that change the pool one at a time.
"""

from thinpoold.admin.facts import find, info, list_volumes, place_of, status, tree
from thinpoold.admin.losses import accept_loss
from thinpoold.admin.memory import memory
from thinpoold.admin.settings import get_settings, grow, set_settings
from thinpoold.admin.snapshots import begin_rollback, rollback, snapshot
from thinpoold.admin.volumes import begin_delete, create, delete, rename, resize

__all__ = [
    "accept_loss",
    "begin_delete",
    "begin_rollback",
    "create",
    "delete",
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
