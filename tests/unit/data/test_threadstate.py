"""Keeping thread states, in threads that Python did not start, as nbdkit's are."""

import ctypes
import threading
from collections.abc import Callable

from tests.unit.data.rigs import spin
from thinpoold.threadstate import Kept, late, local

_libc = ctypes.CDLL(None)
_api = ctypes.pythonapi
_api.PyInterpreterState_Main.restype = ctypes.c_void_p
_api.PyInterpreterState_ThreadHead.restype = ctypes.c_void_p
_api.PyInterpreterState_ThreadHead.argtypes = [ctypes.c_void_p]
_api.PyThreadState_Next.restype = ctypes.c_void_p
_api.PyThreadState_Next.argtypes = [ctypes.c_void_p]
_Start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


def thread_states() -> int:
    """How many the interpreter has."""
    count = 0
    state = _api.PyInterpreterState_ThreadHead(_api.PyInterpreterState_Main())
    while state:
        count += 1
        state = _api.PyThreadState_Next(state)
    return count


class ForeignThread:
    """A thread made without Python. Its function is one call into Python, or more."""

    def __init__(self, function: Callable[[object], object]) -> None:
        self.start = _Start(function)
        self.number = ctypes.c_ulong()
        assert _libc.pthread_create(ctypes.byref(self.number), None, self.start, None) == 0

    def join(self) -> None:
        assert _libc.pthread_join(self.number, None) == 0


def release_all(kept: Kept) -> None:
    """A joined thread may be in /proc for a moment still."""

    def done() -> bool:
        kept.release()
        return not late()

    spin(done)


def test_a_state_stays_until_it_is_released() -> None:
    kept = Kept()
    before = thread_states()
    marks: list[bool] = []

    def call(_: object) -> None:
        marks.append(hasattr(local, "kept"))
        kept.keep()
        kept.keep()
        marks.append(hasattr(local, "kept"))

    foreign = [ForeignThread(call) for _ in range(4)]
    for thread in foreign:
        thread.join()
    assert marks.count(False) == 4
    assert thread_states() == before + 4
    release_all(kept)
    assert thread_states() == before
    kept.release()


def test_a_thread_that_is_not_kept_leaves_nothing() -> None:
    before = thread_states()
    ForeignThread(lambda _: None).join()
    assert thread_states() == before


def test_a_running_threads_state_is_left_to_it() -> None:
    kept, before = Kept(), thread_states()
    inside, go = threading.Event(), threading.Event()

    def call(_: object) -> None:
        kept.keep()
        inside.set()
        go.wait(60)

    foreign = ForeignThread(call)
    assert inside.wait(60)
    kept.release()
    assert late() == 1
    assert thread_states() > before
    go.set()
    foreign.join()
    # Whoever is released next takes it along.
    release_all(Kept())
    assert thread_states() == before


def test_the_callers_own_state_is_let_go() -> None:
    """With one thread a connection, the thread that closes it served its requests, too."""
    kept, before = Kept(), thread_states()
    marks: list[bool] = []

    def call(_: object) -> None:
        kept.keep()
        kept.release()
        marks.append(hasattr(local, "kept"))

    ForeignThread(call).join()
    assert marks == [False]
    assert thread_states() == before
