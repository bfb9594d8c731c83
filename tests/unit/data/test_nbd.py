"""The plugin's functions, with a stand-in for the module that nbdkit has within itself."""

import errno
import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, Rig
from thinpoold import admin
from thinpoold.access import Peer
from thinpoold.errors import NoSuchVolume, ThinPoolError
from thinpoold.fastpath import Choice
from thinpoold.shares import Share

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "thinpool.py"

# What nbdkit's Python plugin calls, of what a volume needs.
CALLBACKS = (
    *("thread_model", "config", "config_complete", "after_fork", "cleanup"),
    *("list_exports", "default_export", "open", "close", "export_description"),
    *("get_size", "block_size", "is_rotational", "can_write", "can_flush", "can_trim", "can_zero"),
    *("can_fast_zero", "can_extents", "can_multi_conn", "can_fua", "can_cache"),
    *("pread", "pwrite", "flush", "trim", "zero", "extents", "cache"),
)


class Nbdkit(types.ModuleType):
    """The module `nbdkit`, as far as the plugin uses it. `errors` is what was set."""

    THREAD_MODEL_PARALLEL = 3
    EXTENT_HOLE, EXTENT_ZERO = 1, 2
    FUA_NATIVE, CACHE_NATIVE = 2, 2
    FLAG_MAY_TRIM, FLAG_FUA, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8

    def __init__(self) -> None:
        super().__init__("nbdkit")
        self.name = ""
        self.errors: list[int] = []

    def export_name(self) -> str:
        return self.name

    def set_error(self, number: int) -> None:
        self.errors.append(number)


@pytest.fixture
def nbdkit(monkeypatch: pytest.MonkeyPatch) -> Nbdkit:
    module = Nbdkit()
    monkeypatch.setitem(sys.modules, "nbdkit", module)
    return module


@pytest.fixture
def plugin(nbdkit: Nbdkit, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`thinpoold.nbd` over the rig's pool, as after `after_fork`."""
    monkeypatch.delitem(sys.modules, "thinpoold.nbd", raising=False)
    module = importlib.import_module("thinpoold.nbd")
    monkeypatch.setattr(module, "_pool", rig.pool, raising=False)
    runtime = types.SimpleNamespace(stopping=False, threads=0, log_kept=False)
    monkeypatch.setattr(module, "_runtime", runtime, raising=False)
    monkeypatch.setattr(module.peers, "current", lambda tls=None: Peer())
    # A thread of Python's own keeps its state without our help.
    monkeypatch.setattr(module.Kept, "keep", lambda self: None)
    yield module
    module.thread.__dict__.pop("said", None)
    monkeypatch.delitem(sys.modules, "thinpoold.nbd", raising=False)


def connect(plugin: Any, nbdkit: Nbdkit, name: str, readonly: bool = False) -> Any:
    nbdkit.name = name
    return plugin.open(int(readonly))


def test_a_client_is_told_the_size_that_is_durable(
    rig: Rig, nbdkit: Nbdkit, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resize may begin between the opening and the answer."""
    rig.create("v", size=4 * BLOCK)
    real = rig.pool.open_volume

    def open_volume(name: str, *more: Any) -> Any:
        volume = real(name, *more)
        if more:
            volume.size = 8 * BLOCK
        return volume

    monkeypatch.setattr(rig.pool, "open_volume", open_volume)
    assert plugin.get_size(connect(plugin, nbdkit, "v")) == 4 * BLOCK


def dirty(rig: Rig) -> bool:
    """Whether there is anything to commit."""
    return rig.pool.metadata.dirty


def test_the_script_has_every_callback_and_nothing_private(plugin: Any) -> None:
    found: dict[str, Any] = {}
    exec(compile(PLUGIN.read_text(), str(PLUGIN), "exec"), found)
    assert found["API_VERSION"] == 2
    for name in CALLBACKS:
        assert callable(found[name]), name
    assert found["thread_model"]() == 3


@pytest.mark.parametrize("name", ["gone.so", "libc.so.6"])
def test_a_filter_that_is_not_the_one_nbdkit_loaded(
    plugin: Any, rig: Rig, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Not loaded at all, or without our functions."""
    plugin._runtime.fastpath = Choice(Path(name))
    rig.pool.core.fastpath = None
    with caplog.at_level(logging.INFO):
        plugin._find_filter()
    assert rig.pool.core.fastpath is None
    reason = f"nbdkit has not loaded {name} as it is now"
    assert plugin._runtime.fastpath == Choice(None, reason)
    assert f"no fast path: {reason}" in caplog.text


def test_reads_writes_and_flags(plugin: Any, nbdkit: Nbdkit, rig: Rig) -> None:
    admin.create(rig.pool, "v", 8 * BLOCK)
    h = connect(plugin, nbdkit, "v")
    assert plugin.get_size(h) == 8 * BLOCK
    plugin.pwrite(h, memoryview(b"x" * 1000), 500, 0)
    buffer = memoryview(bytearray(2000))
    plugin.pread(h, buffer, 0, 0)
    assert bytes(buffer) == bytes(500) + b"x" * 1000 + bytes(500)
    assert dirty(rig)
    plugin.pwrite(h, memoryview(b"y"), 3 * BLOCK, nbdkit.FLAG_FUA)
    assert not dirty(rig)
    plugin.zero(h, BLOCK, 3 * BLOCK, nbdkit.FLAG_MAY_TRIM)
    assert plugin.extents(h, 8 * BLOCK, 0, 0) == [(0, BLOCK, 0), (BLOCK, 7 * BLOCK, 3)]
    assert plugin.extents(h, 8 * BLOCK, 0, nbdkit.FLAG_REQ_ONE) == [(0, BLOCK, 0)]
    plugin.zero(h, BLOCK, 5 * BLOCK, nbdkit.FLAG_FUA)
    assert not dirty(rig)
    plugin.cache(h, BLOCK, 0, 0)
    plugin.trim(h, BLOCK, 0, nbdkit.FLAG_FUA)
    assert not dirty(rig)
    plugin.pwrite(h, memoryview(b"z"), BLOCK, 0)
    plugin.flush(h, 0)
    assert not dirty(rig)
    plugin.close(h)
    assert admin.status(rig.pool)["clients"] == 0


def test_what_a_volume_can_do_is_said_honestly(plugin: Any, nbdkit: Nbdkit, rig: Rig) -> None:
    admin.create(rig.pool, "rw", BLOCK)
    admin.create(rig.pool, "ro", BLOCK, read_only=True)
    writes = ("can_write", "can_trim", "can_zero", "can_fast_zero")
    always = ("can_flush", "can_extents", "can_multi_conn")
    for name, readonly, able in (("rw", False, True), ("rw", True, False), ("ro", False, False)):
        h = connect(plugin, nbdkit, name, readonly)
        assert [getattr(plugin, call)(h) for call in writes] == [able] * len(writes)
        assert all(getattr(plugin, call)(h) for call in always)
        assert (plugin.can_fua(h), plugin.can_cache(h)) == (2, 2)
        assert isinstance(plugin.is_rotational(h), bool)
    admin.set_settings(rig.pool, {"discard": "ignore"})
    assert not plugin.can_trim(connect(plugin, nbdkit, "rw"))


@pytest.mark.parametrize(
    ("size", "preferred"), [(BLOCK, BLOCK), (3 * BLOCK, BLOCK), (1 << 30, 4 << 20)]
)
def test_block_sizes_are_powers_of_two(
    plugin: Any, nbdkit: Nbdkit, rig: Rig, size: int, preferred: int
) -> None:
    admin.create(rig.pool, "v", BLOCK)
    h = connect(plugin, nbdkit, "v")
    rig.pool.core.block_size = size
    least, wanted, most = plugin.block_size(h)
    rig.pool.core.block_size = BLOCK
    assert (least, wanted) == (1, preferred)
    assert most == 4 << 20 >= wanted


def test_errors_leave_with_their_errno(plugin: Any, nbdkit: Nbdkit, rig: Rig) -> None:
    with pytest.raises(NoSuchVolume):
        connect(plugin, nbdkit, "nobody")
    assert nbdkit.errors.pop() == errno.ENOENT
    admin.create(rig.pool, "v", BLOCK)
    admin.create(rig.pool, "ro", BLOCK, read_only=True)
    h, ro = connect(plugin, nbdkit, "v"), connect(plugin, nbdkit, "ro")
    calls: tuple[tuple[Callable[[], object], int], ...] = (
        (lambda: plugin.pread(h, bytearray(10), BLOCK, 0), errno.EINVAL),
        (lambda: plugin.pwrite(h, b"x", BLOCK, 0), errno.ENOSPC),
        (lambda: plugin.pwrite(ro, b"x", 0, 0), errno.EPERM),
        (lambda: plugin.zero(h, BLOCK, 0, nbdkit.FLAG_FAST_ZERO), errno.EOPNOTSUPP),
        (lambda: plugin.trim(ro, BLOCK, 0, 0), errno.EPERM),
        (lambda: plugin.extents(h, 2 * BLOCK, 0, 0), errno.EINVAL),
    )
    for call, number in calls:
        with pytest.raises(ThinPoolError):
            call()
        assert nbdkit.errors.pop() == number
    assert not nbdkit.errors


def test_what_nbdkit_prints_is_one_line_with_volume_and_client(
    plugin: Any, nbdkit: Nbdkit, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.create(rig.pool, "v", BLOCK)
    monkeypatch.setattr(plugin.peers, "current", lambda tls=None: Peer(uid=7))
    h = connect(plugin, nbdkit, "v")
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (
            lambda: plugin.pread(h, bytearray(10), BLOCK, 0),
            f"read at {BLOCK}: 10 bytes",
        ),
        (lambda: plugin.extents(h, 2 * BLOCK, 0, 0), "past the end"),
        (lambda: connect(plugin, nbdkit, "nobody"), "user 7: no volume 'nobody'"),
    )
    for call, says in calls:
        with pytest.raises(ThinPoolError) as raised:
            call()
        (line,) = plugin._said(raised.type, raised.value, raised.tb)
        assert "\n" not in line
        assert says in line
        assert line.startswith("volume 'v', user 7: " if "nobody" not in says else "user 7: ")
    # Something that no function of ours has reported.
    assert plugin._said(OSError, OSError("a\nb"), None) == ["a b"]


def test_what_nobody_meant_to_raise_is_logged_in_full(
    plugin: Any, nbdkit: Nbdkit, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    admin.create(rig.pool, "v", BLOCK)
    h = connect(plugin, nbdkit, "v")
    with pytest.raises(TypeError):
        plugin.pread(h, None, 0, 0)
    assert nbdkit.errors == [errno.EIO]
    assert "Traceback" in caplog.text


def test_exports(plugin: Any, nbdkit: Nbdkit, rig: Rig) -> None:
    assert plugin.default_export(0, 0) == ""
    admin.create(rig.pool, "a", 10 * BLOCK)
    assert plugin.default_export(0, 0) == "a"
    h = connect(plugin, nbdkit, "a")
    plugin.pwrite(h, b"x", 0, 0)
    admin.create(rig.pool, "b", BLOCK, read_only=True)
    assert plugin.default_export(0, 0) == ""
    assert plugin.list_exports(0, 0) == [
        ("a", "640K, 64K mapped"),
        ("b", "64K, 0 mapped, read-only"),
    ]
    assert "640K" in plugin.export_description(h)


def test_more_volumes_than_nbdkit_lists_are_no_failure(
    rig: Rig, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_MOST_EXPORTS", 3)
    for number in range(12):
        admin.create(rig.pool, f"v{number}", BLOCK)
    assert [name for name, _ in plugin.list_exports(0, 0)] == ["v0", "v1", "v2"]


def test_parameters(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_given", {})
    with pytest.raises(ValueError, match="missing"):
        plugin.config_complete()
    with pytest.raises(ValueError, match="unknown"):
        plugin.config("size", "1")
    monkeypatch.chdir(tmp_path)
    plugin.config("pool", "here")
    plugin.config("cache-size", "32M")
    plugin.config_complete()
    assert plugin._given == {"pool": str(tmp_path / "here"), "cache-size": "32M"}


def test_every_kind_of_request_is_paced_and_has_its_share(
    rig: Rig, nbdkit: Nbdkit, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.create(rig.pool, "v", 8 * BLOCK)
    h = connect(plugin, nbdkit, "v")
    paced: list[int] = []
    shared: list[str] = []
    h.volume.limiter = types.SimpleNamespace(pace=paced.append)
    for name in ("begin", "end"):
        real = getattr(Share, name)

        def noted(share: Share, *given: Any, name: str = name, real: Any = real) -> Any:
            assert share is h.volume.share
            assert not h.volume.gate.occupied()
            shared.append(name)
            return real(share, *given)

        monkeypatch.setattr(Share, name, noted)
    requests: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: plugin.pread(h, bytearray(512), 0, 0), 512),
        "write": (lambda: plugin.pwrite(h, memoryview(bytes(4096)), 0, 0), 4096),
        "flush": (lambda: plugin.flush(h, 0), 0),
        "trim": (lambda: plugin.trim(h, BLOCK, 0, 0), 0),
        "zero": (lambda: plugin.zero(h, BLOCK, 0, 0), 0),
        "block status": (lambda: plugin.extents(h, 8 * BLOCK, 0, 0), 0),
        "prefetch": (lambda: plugin.cache(h, 4 * BLOCK, 0, 0), 4 * BLOCK),
    }
    for kind, (request, count) in requests.items():
        paced.clear()
        shared.clear()
        request()
        assert paced == [count], kind
        assert shared == ["begin", "end"], kind
    # No more than the device reads for one.
    monkeypatch.setattr(rig.pool.device, "prefetch_bytes", BLOCK)
    paced.clear()
    plugin.cache(h, 4 * BLOCK, 0, 0)
    assert paced == [BLOCK]
