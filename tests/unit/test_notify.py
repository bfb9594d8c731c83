"""The datagrams to a service manager, and when its watchdog is fed."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thinpoold import notify
from thinpoold.motion import Motion
from thinpoold.notify import Heart, Longer, Notifier


def heart(
    notifier: Notifier,
    ticks: Callable[[], int],
    status: Callable[[], str],
    motion: Motion | None = None,
    rounds: Callable[[], int] = lambda: 0,
) -> Heart:
    """A heart over what moves, or nothing that does."""
    return Heart(notifier, ticks, status, motion or Motion(), rounds)


class Manager:
    """A service manager's socket, at a path or in the abstract namespace."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(60)

    def receive(self) -> dict[str, str]:
        lines = self.socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def heard(self) -> bool:
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(65536))
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(60)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    manager = Manager(address if request.param == "path" else f"@{address}")
    yield manager
    manager.socket.close()


def test_fields_are_lines_of_one_datagram(manager: Manager) -> None:
    assert Notifier(manager.address).send(READY="1", STATUS="write: all is well")
    assert manager.receive() == {"READY": "1", "STATUS": "write: all is well"}


def test_a_value_cannot_smuggle_in_a_field(manager: Manager) -> None:
    Notifier(manager.address).send(STATUS="bad\nREADY=1\n" + "x" * 1000)
    assert list(manager.receive()) == ["STATUS"]


def test_nobody_to_tell() -> None:
    assert not Notifier().send(READY="1")
    heart(Notifier(), lambda: 0, lambda: "").start()


def test_a_manager_that_has_gone_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not Notifier(str(tmp_path / "gone")).stopping()
    assert "cannot notify the service manager" in caplog.text


@pytest.mark.parametrize(
    ("variables", "notifier"),
    [
        ({}, Notifier()),
        ({"NOTIFY_SOCKET": "/run/x"}, Notifier("/run/x")),
        ({"NOTIFY_SOCKET": "@x"}, Notifier("@x")),
        ({"NOTIFY_SOCKET": ""}, Notifier()),
        ({"NOTIFY_SOCKET": "@"}, Notifier()),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, Notifier()),
        ({"WATCHDOG_USEC": "1000000"}, Notifier()),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2500000"}, Notifier("/x", 2.5)),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, Notifier("/x")),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, Notifier("/x")),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, Notifier("/x")),
        (
            {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())},
            Notifier("/x", 1.0),
        ),
    ],
)
def test_the_environment(variables: dict[str, str], notifier: Notifier) -> None:
    environment = {**variables, "PATH": "/bin"}
    assert notify.from_environment(environment) == notifier
    assert environment == {"PATH": "/bin"}


class Pool:
    """What a heart sees of a pool."""

    def __init__(self) -> None:
        self.ticks = 0
        self.rounds = 0
        self.status = "write"
        self.switches = 0
        self.motion = Motion(lambda thread: self.switches)

    def heart(self, manager: Manager, watchdog: float | None = 60.0) -> Heart:
        notifier = Notifier(manager.address, watchdog)
        return heart(notifier, lambda: self.ticks, self.say, self.motion, lambda: self.rounds)

    def say(self) -> str:
        if self.status == "broken":
            raise ValueError("this is broken")
        return self.status


def test_the_watchdog_is_fed_while_the_timer_comes_round(manager: Manager) -> None:
    pool = Pool()
    heart = pool.heart(manager)
    assert heart.beat()
    assert manager.receive() == {"STATUS": "write", "WATCHDOG": "1"}
    pool.ticks += 1
    assert heart.beat()
    assert manager.receive() == {"WATCHDOG": "1"}


def test_not_once_it_stands_still(manager: Manager) -> None:
    pool = Pool()
    heart = pool.heart(manager)
    heart.beat()
    manager.receive()
    assert not heart.beat()
    assert not manager.heard()
    pool.status = "read-only"
    assert not heart.beat()
    assert manager.receive() == {"STATUS": "read-only"}
    pool.ticks += 1
    assert heart.beat()


def test_a_timer_that_waits_for_what_moves_is_alive(manager: Manager) -> None:
    pool = Pool()
    heart = pool.heart(manager)
    assert heart.beat()
    with pool.motion.work():
        assert heart.beat()
        for _ in range(3):
            pool.switches += 1
            assert heart.beat()
            # The same wait goes on.
            assert not heart.beat()


def test_not_one_that_others_pass_by(manager: Manager) -> None:
    """Rounds go on, and the timer that is to begin them does not come round."""
    pool = Pool()
    heart = pool.heart(manager)
    heart.beat()
    fed = 0
    for _ in range(20):
        with pool.motion.work():
            pass
        pool.rounds += 1
        fed += heart.beat()
    assert 2 <= fed < 10
    pool.ticks += 1
    assert heart.beat()


def test_a_pool_that_answers_late_is_alive_while_work_moves(manager: Manager) -> None:
    pool = Pool()
    asked, answer = threading.Event(), threading.Event()

    def status() -> str:
        asked.set()
        answer.wait()
        return "late"

    pool.say = status  # type: ignore[method-assign]
    heart = pool.heart(manager, 0.04)
    with pool.motion.work():
        for fed in (True, False):
            pool.switches += fed
            pool.ticks += 1
            assert heart.beat() is fed
        assert asked.wait(60)
        assert manager.receive() == {"WATCHDOG": "1"}
        answer.set()
        while not heart.beat():
            pool.ticks += 1
    assert manager.receive()["STATUS"] == "late"
    heart.stop()


def test_more_time_is_asked_for_while_a_start_moves(manager: Manager) -> None:
    pool = Pool()
    longer = Longer(Notifier(manager.address), pool.motion)
    with longer:
        for _ in range(3):
            pool.switches += 1
            assert longer.look()
            assert manager.receive() == {"EXTEND_TIMEOUT_USEC": "60000000"}
            # It waits for one thing.
            assert not longer.look()
        assert not manager.heard()
    assert not any(thread.name == "longer" for thread in threading.enumerate())


def test_the_thread_asks_for_more_time(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Longer, "LOOK_SECONDS", 0.01)
    with Longer(Notifier(manager.address)):
        # Each time this is woken it has moved.
        for _ in range(3):
            assert list(manager.receive()) == ["EXTEND_TIMEOUT_USEC"]


def test_nobody_is_asked_for_more_time_where_there_is_no_manager() -> None:
    with Longer(Notifier()) as nothing:
        assert nothing is None
        assert not any(thread.name == "longer" for thread in threading.enumerate())


def test_a_pool_that_cannot_say_how_it_is_lives(manager: Manager) -> None:
    pool = Pool()
    pool.status = "broken"
    assert pool.heart(manager).beat()
    assert manager.receive()["STATUS"] == "cannot say how the pool is: this is broken"


def test_a_pool_that_never_answers_is_not_fed_for(manager: Manager) -> None:
    asks = iter(range(1000000))
    hanging, answer = threading.Event(), threading.Event()

    def status() -> str:
        if next(asks) == 1:
            hanging.set()
            answer.wait()
        return "write"

    count = iter(range(1000000))
    beating = heart(Notifier(manager.address, 0.01), lambda: next(count), status)
    beating.start()
    assert manager.receive() == {"READY": "1", "STATUS": "write"}
    hanging.wait()
    assert not manager.heard()
    answer.set()
    assert manager.receive() == {"WATCHDOG": "1"}
    beating.stop()


def test_the_thread_says_ready_feeds_and_ends(manager: Manager) -> None:
    count = iter(range(1000000))
    beating = heart(Notifier(manager.address, 0.02), lambda: next(count), lambda: "write")
    beating.start()
    assert manager.receive() == {"READY": "1", "STATUS": "write"}
    assert manager.receive() == {"WATCHDOG": "1"}
    assert manager.receive() == {"WATCHDOG": "1"}
    beating.stop()
    beating.stop()
    while manager.heard():
        pass
    assert not any(thread.name == "heart" for thread in threading.enumerate())


def test_without_a_watchdog_there_is_still_the_status(manager: Manager) -> None:
    pool = Pool()
    heart = pool.heart(manager, None)
    assert not heart.beat()
    assert manager.receive() == {"STATUS": "write"}
    assert not heart.beat()
    assert not manager.heard()


def test_nothing_is_said_after_the_end(manager: Manager) -> None:
    heart = Pool().heart(manager)
    heart.stop()
    heart.beat()
    assert not manager.heard()
