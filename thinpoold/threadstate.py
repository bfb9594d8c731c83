"""Keeping the interpreter's state of nbdkit's threads alive between requests.

nbdkit calls a plugin from threads of its own. For each call it makes a Python thread state and
destroys it again, which costs an mmap and a munmap of the interpreter's stack: several times what a
small read costs, and more with more threads, as each munmap interrupts the other processors.
PyGILState_Ensure, called once more from within a request, counts as a user of that state, so it
stays for the thread's next request.

What was kept must be given back when the thread has ended: by another thread, for it is gone. That
is what `release` does, once per connection, when nbdkit has joined the connection's threads. From
CPython 3.12 on, who destroys a state that PyGILState_Ensure has made loses its own: the slot in
which that finds a thread's state is cleared for the thread that calls. nbdkit's thread would abort
the process at its next PyGILState_Release. So a thread of Python's own does it, which uses no such
slot, and ends with that.

Invariants

1. Only the states of threads that have ended are destroyed, and the caller's own is only let go.
2. A thread's state is kept once: what tells is an attribute that goes with the state.

Thread-safety: `keep` from any thread; `release` once all requests of the connection are over.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Final

_api = ctypes.pythonapi
_ensure = _api.PyGILState_Ensure
_ensure.argtypes = []
_ensure.restype = ctypes.c_int
_release = _api.PyGILState_Release
_release.argtypes = [ctypes.c_int]
_release.restype = None
_current = _api.PyThreadState_Get
_current.argtypes = []
_current.restype = ctypes.c_void_p
_clear = _api.PyThreadState_Clear
_clear.argtypes = [ctypes.c_void_p]
_clear.restype = None
_delete = _api.PyThreadState_Delete
_delete.argtypes = [ctypes.c_void_p]
_delete.restype = None

# What PyGILState_Ensure returns to a thread that holds the interpreter's lock already.
_LOCKED: Final = 0

local: Final = threading.local()
"""Has the attribute `kept` in threads whose state is kept, `said` where nbdkit is to print it."""


# (kernel thread id, thread state) of threads that were not quite gone when their connection closed:
# a thread can be joined a moment before the kernel takes it out of /proc. Or no thread could be had
# to destroy them. Guarded by _lock.
_late: Final[list[tuple[int, int]]] = []
_lock: Final = threading.Lock()


class Kept:
    """The states kept for one connection."""

    def __init__(self) -> None:
        # Kernel thread id -> thread state. Dict operations are atomic.
        self._states: dict[int, int] = {}

    def keep(self) -> None:
        """Keep this thread's state; for a thread of nbdkit's, inside a call from it."""
        if hasattr(local, "kept"):
            return
        local.kept = True
        self._states[threading.get_native_id()] = _current()
        _ensure()

    def release(self) -> None:
        """Give all back. The threads have ended, save for the caller's."""
        own = self._states.pop(threading.get_native_id(), None)
        if own is not None:
            del local.kept
            _release(_LOCKED)
        with _lock:
            waiting = [*_late, *self._states.items()]
            self._states.clear()
            _late.clear()
            gone: list[tuple[int, int]] = []
            for thread, state in waiting:
                left = os.path.exists(f"/proc/self/task/{thread}")
                (_late if left else gone).append((thread, state))
            if gone and not _destroyed([state for _, state in gone]):
                _late.extend(gone)


def _destroyed(states: list[int]) -> bool:
    """Destroy states of threads that have ended; False, with none destroyed, without a thread."""

    def destroy() -> None:
        for state in states:
            _clear(state)
            _delete(state)

    destroyer = threading.Thread(target=destroy, name="states")
    try:
        destroyer.start()
    except RuntimeError:
        return False
    destroyer.join()
    return True


def late() -> int:
    """How many states wait for a later `release`."""
    return len(_late)
