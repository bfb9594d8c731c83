"""What a word of a command line may become, told by the placeholder that its help shows for it.

VOL completes to volumes, POOL to pools and directories, FILE to files, and so on; a verb has
nothing to do but name its arguments as others do. Volumes are read from the pool's last commit,
whether its daemon runs or not: every verb has committed when it ends, and a daemon that is busy
must not keep a prompt waiting.

Whatever goes wrong means that there is nothing to complete. Thread-safety: none needed.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from thinpoold.cli.options import POOL_VARIABLE
from thinpoold.paths import METADATA_FILE, default_directory, resolve_pool

Items = list[CompletionItem[Any]]
_Source = Callable[[click.Context, str], Iterable[str]]

# Verbs whose VOL is not there yet.
_NEW = frozenset({"create"})
_FILES = {"PATH": "file", "FILE": "file", "DIR": "dir", "POOL": "dir"}


def candidates(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Return what the word `incomplete`, which stands for `parameter`, may become."""
    words = (parameter.metavar or "").strip("[].")
    items: Items = []
    source = _SOURCES.get(words)
    if source is not None and (words != "VOL" or context.info_name not in _NEW):
        try:
            found = [word for word in source(context, incomplete) if word.startswith(incomplete)]
        except Exception:
            found = []
        items = [CompletionItem(word) for word in dict.fromkeys(found)]
    kind = _FILES.get(words)
    if kind is not None:
        items.append(CompletionItem(incomplete, type=kind))
    return items


def volume_names(pool: str) -> list[str]:
    """Return the names of the volumes of a pool's last commit, in order."""
    from thinpoold.metadata_file import open_store, readable
    from thinpoold.volumes import TABLE, VolumeRecord, by_name

    paths = resolve_pool(pool).require_pool()
    with readable(paths) as alone:
        store = open_store(paths.metadata, read_only=True, alone=alone)
        try:
            found = by_name(VolumeRecord.unpack(*record) for record in store.records(TABLE))
            return [record.name for record in found]
        finally:
            store.close()


def pool_names() -> list[str]:
    """Return the names of the pools in the default directory."""
    found = default_directory().iterdir()
    return sorted(path.name for path in found if (path / METADATA_FILE).exists())


def _given(context: click.Context, *names: str) -> list[str]:
    """Return the words that some parameters have been given already, here or before the verb."""
    words: list[str] = []
    here: click.Context | None = context
    while here is not None:
        for name in names:
            value = here.params.get(name)
            words += [value] if isinstance(value, str) else value or ()
        here = here.parent
    return words


def _volumes(context: click.Context, incomplete: str) -> Iterable[str]:
    pools = [*_given(context, "pool", "pool_word"), os.environ.get(POOL_VARIABLE, "")]
    taken = _given(context, "volumes")
    return [name for name in volume_names(pools[0]) if name not in taken]


def _origins(context: click.Context, incomplete: str) -> Iterable[str]:
    # Every other word is a new name.
    return [] if len(_given(context, "words")) % 2 else _volumes(context, incomplete)


def _pools(context: click.Context, incomplete: str) -> Iterable[str]:
    return pool_names()


def _settings(context: click.Context, incomplete: str) -> Iterable[str]:
    """KEY=, and for a key whose values are words, KEY=VALUE."""
    from thinpoold import settings

    if context.params.get("volume"):
        return ["iops=", "bps=", "read-only=yes", "read-only=no", "allow=", "label."]
    values: dict[str, Sequence[str]] = {
        "on_full": settings.ON_FULL,
        "discard": settings.DISCARD,
        "cache": settings.CACHE,
        **{name: ("yes", "no") for name, flag in _defaults().items() if isinstance(flag, bool)},
    }
    return [
        f"{name.replace('_', '-')}={value}"
        for name in _defaults()
        for value in values.get(name, "")
    ] + [f"{name.replace('_', '-')}=" for name in _defaults() if name not in values]


def _keys(context: click.Context, incomplete: str) -> Iterable[str]:
    if context.params.get("volume"):
        return ["iops", "bps", "read-only", "allow"]
    return [name.replace("_", "-") for name in _defaults()]


def _defaults() -> dict[str, Any]:
    from thinpoold.settings import Settings

    return dict(Settings().as_json())


def _listen(context: click.Context, incomplete: str) -> Iterable[str]:
    return ["unix", "127.0.0.1:10809", "[::1]:10809"]


_SOURCES: dict[str, _Source] = {
    "VOL": _volumes,
    "VOL|DEVICE": _volumes,
    "OLD": _volumes,
    "SNAP": _volumes,
    "ORIGIN SNAP [ORIGIN SNAP": _origins,
    "POOL": _pools,
    "KEY=VALUE": _settings,
    "KEY": _keys,
    "unix|ADDR:PORT": _listen,
}
