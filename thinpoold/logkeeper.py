"""Keeps a daemon's log: a program that reads what the daemon writes to stderr, until it ends.

    launch.start -> a pipe -> this program -> POOL/thinpoold.log, thinpoold.log.1

What a daemon says is up to its clients: each request that is refused is a line of nbdkit's, at
thousands a second. So somebody has to count, and it cannot be the daemon: much of this nbdkit's C
writes to stderr by itself, also when the process is about to abort.

nbdkit names a connection by a number alone. The plugin introduces each (`introduction`) when it
opens a volume, in a line that goes no further than here. Where a connection has several threads,
nbdkit names those, whosever they are: then only what the plugin refuses tells volume and client.

Invariants

1. The log, and the one before it, have at most `MAX_LOG` bytes each, and a batch.
2. Of messages that are alike the first is written at once (of the daemon's own, the first five),
   and after each `WINDOW` how many there were since. Alike: the same text but for offsets and
   counts, of the same volume and client.
3. Messages that differ are bounded as well: nbdkit's, which clients cause, apart from the daemon's
   own, so that the former never crowd out the latter. What is left out is counted.
4. A message is one entry: its first line, and the lines that go with it, at most `MAX_ENTRY` bytes.
5. The log is open only while something is written to it. So one that was moved away is made anew,
   and the file system can be unmounted.
6. The daemon never waits for its log: the pipe does not block, and what does not fit is lost.

7. Root's acts with the rights of the owner of the log's directory.

It imports the standard library alone: it is started by its path, without the rest of the package.

Thread-safety: one thread.
"""

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator

MAX_LOG = 4 << 20
MAX_ENTRY = 16 << 10
MAX_LINE = 2 << 10
WINDOW = 60.0
# Different messages that are counted at a time, of all sources, and connections that are known.
MAX_ALIKE = 1000
MAX_CONNECTIONS = 10000

_READ = 1 << 18
_LONGEST = 1 << 16
# nbdkit writes a line in pieces: rather than at each, look when some have come together.
_PAUSE = 0.02
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
# What begins a message: the daemon's logger, nbdkit, either's last words.
_HEAD = re.compile(rf"({_TIME.pattern})?(thinpoold|nbdkit): |Fatal Python error: ")
# `python` is the plugin's name to nbdkit, the number the connection's, [N] for none.
_CONNECTION = re.compile(r"nbdkit: \S+?\[(\d+)\]: (?:error: )?")
# A thread of a connection that has several: of which connection nbdkit does not say.
_WORKER = re.compile(r"nbdkit: \S+?\.\d+: (?:error: )?")
_SCRIPT = re.compile(r"\S*thinpool\.py: (\w+): error: ")
_NUMBERS = re.compile(r"(?<==)\d+|(?<= at )\d+|\d+(?= bytes)")
_INTRODUCTION = "introducing connection: "
_INDENT = "    "


def introduction(who: str) -> str:
    """Return what the plugin has nbdkit say when `who` opens a volume."""
    return _INTRODUCTION + who


class Bucket:
    """Lets `burst` messages pass, and after them `rate` a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = burst
        self._since: float | None = None

    def takes(self, now: float) -> bool:
        if self._since is not None:
            self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Source:
    """One of those whose messages are bounded apart.

    Of those that are alike `copies` are written before they are counted; `left_out` is how many
    messages were neither since the last count.
    """

    def __init__(self, name: str, copies: int, bucket: Bucket) -> None:
        self.name = name
        self.copies = copies
        self.bucket = bucket
        self.left_out = 0


class Alike:
    """Messages that are alike: the first one's text, when, and how many came after it.

    `copies` is how many more of them will be written.
    """

    __slots__ = ("copies", "more", "since", "text")

    def __init__(self, text: str, since: float, copies: int) -> None:
        self.text = text
        self.since = since
        self.copies = copies
        self.more = 0


class Condenser:
    """Makes of lines the entries of a log. `now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._alike: dict[str, Alike] = {}
        # By the whole line, which most that are repeated have in common.
        self._lines: dict[bytes, Alike] = {}
        self._connections: dict[str, str] = {}
        self._daemon = Source("the daemon", 5, Bucket(1000, 10.0))
        self._nbdkit = Source("nbdkit", 1, Bucket(200, 0.5))
        self._counted = 0.0
        # How much more of the entry under way is written; whether lines that go with it are.
        self._room = 0

    def take(self, line: bytes, now: float) -> Iterator[str]:
        """Take one line, without its end; yield what is to be written, without its time."""
        known = self._lines.get(line)
        if known is not None:
            known.more += 1
            self._room = 0
            return
        text = _printable(line[:MAX_LINE])
        head = _HEAD.match(text)
        if head is None and (self._room or text[:1].isspace() or not text):
            # It goes with the message before it.
            if text.strip() and self._room:
                self._room = max(self._room - len(text), 0)
                yield _INDENT + text
            return
        self._room = 0
        said = self._named(text)
        if not said:
            return
        source = self._nbdkit if head is not None and head[2] == "nbdkit" else self._daemon
        key = _NUMBERS.sub("#", _TIME.sub("", said))
        known = self._alike.get(key)
        if known is None and len(self._alike) < MAX_ALIKE and source.bucket.takes(now):
            self._alike[key] = known = Alike(said, now, source.copies)
        if known is None:
            source.left_out += 1
        elif known.copies:
            known.copies -= 1
            self._room = MAX_ENTRY
            yield said
        else:
            known.more += 1
            if len(self._lines) < MAX_ALIKE:
                self._lines[line] = known

    def count(self, now: float, *, last: bool = False) -> Iterator[str]:
        """Yield how many were alike, for those whose time is over, or at the end for all."""
        for key, known in list(self._alike.items()):
            seconds = now - known.since
            if seconds < WINDOW and not last:
                continue
            if known.more:
                yield f"{_TIME.sub('', known.text)} ({known.more} more like it in {seconds:.0f} s)"
                known.more, known.since = 0, now
            else:
                del self._alike[key]
                self._lines.clear()
        if now - self._counted >= WINDOW or last:
            self._counted = now
            for source in (self._daemon, self._nbdkit):
                if source.left_out:
                    yield f"thinpoold: {source.left_out} other messages of {source.name} left out"
                    source.left_out = 0

    @property
    def waits(self) -> bool:
        """Whether `count` will have something to say."""
        return bool(self._alike) or self._daemon.left_out > 0 or self._nbdkit.left_out > 0

    def _named(self, text: str) -> str:
        """Name the volume and client of a connection's message; "" for an introduction."""
        match = _CONNECTION.match(text)
        worker = _WORKER.match(text) if match is None else None
        if worker is not None:
            return self._of_client("a client", text[worker.end() :])
        if match is None:
            return text
        number, rest = match[1], text[match.end() :]
        if rest.startswith(_INTRODUCTION):
            if len(self._connections) >= MAX_CONNECTIONS:
                del self._connections[next(iter(self._connections))]
            self._connections[number] = rest.removeprefix(_INTRODUCTION)
            return ""
        who = self._connections.get(number, "a client that has opened no volume")
        return self._of_client(who, rest)

    @staticmethod
    def _of_client(who: str, rest: str) -> str:
        if _SCRIPT.match(rest):
            # The plugin has named them already.
            return "nbdkit: " + _SCRIPT.sub(r"\1: ", rest, count=1)
        return f"nbdkit: {who}: {rest}"


class Log:
    """The file, and the one before it."""

    def __init__(self, path: str, old: str, most: int = MAX_LOG) -> None:
        self._path = path
        self._old = old
        self._most = most

    def write(self, entries: list[str]) -> None:
        """Add these, each with its time, in one piece. What cannot be written is lost."""
        stamp = _now()
        text = "".join(f"{'' if _stamped(one) else stamp}{one}\n" for one in entries)
        try:
            fd = open_log(self._path)
            try:
                if os.fstat(fd).st_size + len(text) > self._most:
                    os.rename(self._path, self._old)
                    os.close(fd)
                    fd = open_log(self._path)
                os.write(fd, text.encode(errors="replace"))
            finally:
                os.close(fd)
        except OSError:
            # There is nobody to tell, and nothing that could be told next may be lost for it.
            pass


def open_log(path: str) -> int:
    """Open a log to add to it. Raises OSError."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def keep(pipe: int, log: Log, condenser: Condenser | None) -> None:
    """Write to the log what comes from the pipe, to its end. Without `condenser`, as it is."""
    rest = b""
    while True:
        wait = WINDOW / 4 if condenser is not None and condenser.waits else None
        ready, _, _ = select.select([pipe], [], [], wait)
        piece = os.read(pipe, _READ) if ready else None
        *lines, rest = (rest + (piece or b"")).split(b"\n")
        if len(rest) > _LONGEST:
            lines, rest = [*lines, rest], b""
        if piece == b"" and rest:
            lines.append(rest)
        entries: list[str] = []
        if condenser is None:
            entries += map(_printable, lines)
        else:
            now = time.monotonic()
            for line in lines:
                entries += condenser.take(line, now)
            entries += condenser.count(now, last=piece == b"")
        if entries:
            log.write(entries)
        if piece == b"":
            return
        if piece is not None and len(piece) < _READ:
            time.sleep(_PAUSE)


def _printable(line: bytes) -> str:
    """Clients choose some of it: not to control a terminal."""
    text = line.decode(errors="replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _stamped(entry: str) -> bool:
    return entry.startswith(_INDENT) or _TIME.match(entry) is not None


def _now() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now % 1 * 1000):03d} "


def become_owner(directory: str) -> None:
    """If this process is root's, have it be the directory's owner's: see `poolfiles`."""
    owner = os.stat(directory, follow_symlinks=False)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


def main() -> None:
    """Keep the log LOG, and OLD, of what comes from stdin; all of it with THINPOOL_DEBUG."""
    path, old = sys.argv[1:]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        # It ends with the daemon, and neither before nor after.
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    become_owner(os.path.dirname(path))
    with open("/proc/self/comm", "w") as comm:
        comm.write("thinpoold-log")
    keep(0, Log(path, old), None if os.environ.get("THINPOOL_DEBUG") else Condenser())
    # At once: the file system of the pool may be unmounted next.
    os._exit(0)


if __name__ == "__main__":
    main()
