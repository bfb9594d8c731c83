"""`thinpool check` and `thinpool export-metadata`.

Both open the metadata themselves and read its last commit, so they take no lock, and a running pool
neither waits for them nor they for it; where they cannot write LMDB's lock file they share the
pool's lock instead (`metadata_file`). Only `check --clear-needs-check` and `check --accept-data`
write, and hold the lock from before the check: what they change is what they looked at.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thinpoold import lock
from thinpoold.cli import output
from thinpoold.cli.options import Text, chosen_pool, json_option, pool_argument, verb
from thinpoold.errors import DeviceError, PoolLocked, ThinPoolError, UserError
from thinpoold.paths import PoolPaths
from thinpoold.progress import Progress

if TYPE_CHECKING:
    from thinmeta.check import CheckResult
    from thinmeta.store.protocol import BlockStore


@verb("check")
@pool_argument
@click.option(
    "--clear-needs-check",
    "clear",
    is_flag=True,
    help="If all is sound, let a pool that was marked as in need of a check take writes again.",
)
@click.option(
    "--accept-data",
    "accept",
    is_flag=True,
    help="If all else is sound, take the data device as it is for the pool's own.",
)
@json_option
@click.pass_context
def check(
    context: click.Context,
    pool_word: str | None,
    pool: str | None,
    clear: bool,
    accept: bool,
    as_json: bool,
) -> None:
    """Check all metadata of POOL, every checksum, order and count, and whose the data device is.

    It works on a running pool too, which commits first, without holding it up. Every problem gets a
    line on stdout that says where, what and of which kind.

    A pool that met damage is marked as in need of a check, and opens read-only from then on, also
    when the damage is gone. --clear-needs-check takes the mark away, if the check finds nothing.
    For that the pool must be stopped.

    A data device that is an older copy, or has lost the pool's mark, is not served. If you know
    that its content goes with the metadata, --accept-data gives it the mark anew. For that the pool
    must be stopped, too. A device with another pool's mark is never accepted.

    \b
    Examples:
      thinpool check mypool
      thinpool check mypool --json
      thinpool stop mypool && thinpool check mypool --clear-needs-check

    Exit status: 0 all is sound; 1 something is not, it could not be checked, or the pool runs and
    nothing can be cleared or accepted.
    """
    paths = chosen_pool(pool, pool_word).require_pool()
    with ExitStack() as stack:
        lock_fd = stack.enter_context(_stopped(paths)) if clear or accept else None
        running = lock_fd is None and _commit_running(paths)
        with Progress(f"checking pool {paths.name}") as progress:
            result = _check(paths, progress, running=running)
        marked = result.needs_check
        # Not of a store that is damaged: LMDB may not survive reading it.
        waiting = _flushed(paths) if result.ok and not running else 0
        if lock_fd is not None and (accept or marked) and _only_marks(result):
            if marked and not clear:
                raise UserError(
                    "the pool is marked as in need of a check, and takes no change: say "
                    "--clear-needs-check too"
                )
            if accept or result.ok:
                needs_check = _change(paths, lock_fd, clear=clear, accept=accept)
                result = dataclasses.replace(result, needs_check=needs_check, errors=[])
                waiting = 0
    if as_json:
        output.emit_json(result.to_json())
    else:
        _tell(result)
        if clear and result.ok and not result.needs_check:
            output.emit(
                "it takes writes again" if marked else "it was not marked: nothing to clear"
            )
        if accept and result.ok:
            output.emit("its data device is the pool's, and has its mark")
    if waiting:
        output.note(
            f"{output.plural(waiting, 'change')} flushed since the last commit: "
            + ("the next start commits them" if not marked else "they wait for the mark to go")
        )
    if not result.ok:
        count = output.plural(len(result.errors), "problem")
        output.note(
            f"the data device of pool {paths.directory} is not the one that its metadata goes with"
            if _only_marks(result)
            else f"the metadata of pool {paths.directory} is damaged: {count}; "
            "stop the pool, and keep a copy of its directory before anything else"
        )
        context.exit(1)


@verb("export-metadata")
@click.argument("file", metavar="FILE", type=Text())
@json_option
def export_metadata(file: str, pool: str | None, as_json: bool) -> None:
    """Write the metadata of a pool to FILE in the kernel's own format, that of dm-thin.

    FILE is made, or replaced. thin_check and thin_dump take it as it is, and so does the kernel's
    thin-pool target once it is on a block device. It works on a running pool too, which commits
    first, without holding it up.

    \b
    Examples:
      thinpool -p mypool export-metadata meta.img
      thin_check meta.img

    Exit status: 0 written; 1 refused (FILE is the pool's own) or failed.
    """
    from thinpoold.cli.backend import Backend

    paths = chosen_pool(pool).require_pool()
    target = Path(file)
    if not file:
        raise UserError("FILE is empty: name the file to write")
    opened = _opened
    if not _commit_running(paths) and _flushed(paths):
        # A daemon left it that died. Whoever opens the pool commits it.
        if paths.read_only or not lock.is_writable(paths):
            opened = _recovered
        else:
            Backend(paths).call("commit")
    with (
        Progress(f"exporting the metadata of pool {paths.name}") as progress,
        opened(paths) as store,
    ):
        _refuse_own(paths, target, store)
        _export(store, target, progress)
    if as_json:
        output.emit_json({"file": str(target), "size": target.stat().st_size})


def _check(paths: PoolPaths, progress: Progress, *, running: bool) -> "CheckResult":
    from thinmeta.check import CheckResult, Problem, check
    from thinmeta.errors import Busy, ThinMetaError
    from thinpoold.audit import audit, data_mark, last_commit
    from thinpoold.metadata_file import damaged_pages, readable

    # The store's own pages first: LMDB follows a damaged one blindly.
    with readable(paths):
        damaged = damaged_pages(paths.metadata)
    if damaged:
        return CheckResult([Problem("store", paths.metadata.name, text) for text in damaged])
    try:
        with _opened(paths) as store:
            result = check(store, progress=progress.update)
            more = [*audit(store), *last_commit(store, paths, running=running)]
            if result.ok:
                try:
                    more += data_mark(store, paths)
                except DeviceError as error:
                    output.note(f"whose the data device is was not checked: {error}")
            return dataclasses.replace(result, errors=[*result.errors, *more])
    except Busy:
        raise
    except ThinMetaError as error:
        return CheckResult([Problem("store", paths.metadata.name, str(error))])


@contextmanager
def _stopped(paths: PoolPaths) -> Iterator[int]:
    """The pool's lock. Raises PoolLocked while it runs, or another command changes it."""
    try:
        lock_fd = lock.acquire(paths, "thinpool check")
    except PoolLocked as error:
        if lock.holder(paths).what != lock.DAEMON:
            raise
        raise PoolLocked(
            f"pool {paths.directory} runs, process {error.pid}: to clear its mark, or accept its "
            "data device, stop it first with 'thinpool stop'",
            error.pid,
        ) from None
    try:
        yield lock_fd
    finally:
        os.close(lock_fd)


def _only_marks(result: "CheckResult") -> bool:
    """Whether nothing is wrong but the mark on the data device."""
    return all(problem.kind == "mark" for problem in result.errors)


def _change(paths: PoolPaths, lock_fd: int, *, clear: bool, accept: bool) -> bool:
    """Commit that nothing needs a check, or whose the data device is, with what was flushed.

    Returns whether something needs a check after it.
    """
    from thinpoold.pool import Pool

    pool = Pool.open(paths.directory, lock_fd=lock_fd, checked=clear, accepting=accept)
    try:
        pool.commit()
        return pool.metadata.needs_check
    finally:
        pool.close()


@contextmanager
def _opened(paths: PoolPaths) -> Iterator["BlockStore"]:
    from thinpoold.metadata_file import open_store, readable

    with readable(paths) as alone:
        store = open_store(paths.metadata, read_only=True, alone=alone)
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _recovered(paths: PoolPaths) -> Iterator["BlockStore"]:
    """The metadata with what waits for the next start, which is committed in memory alone."""
    from thinpoold.pool import Pool

    pool = Pool.open(paths.directory, read_only=True)
    try:
        yield pool.store
    finally:
        pool.close()


def _export(store: "BlockStore", target: Path, progress: Progress) -> None:
    from thinmeta.export import export_metadata

    try:
        export_metadata(store, target, progress=progress.update)
    except OSError as error:
        raise DeviceError(f"cannot write {target}: {error.strerror or error}") from None


def _commit_running(paths: PoolPaths) -> bool:
    """Have a running pool commit what clients have flushed; False if it does not run."""
    from thinmeta.errors import ThinMetaError
    from thinpoold.cli.backend import call_daemon

    if paths.read_only or not lock.is_held(paths):
        return False
    try:
        call_daemon(paths, "commit", {})
    except (ThinPoolError, ThinMetaError) as error:
        output.note(f"this is the last commit of pool {paths.directory}: {error}")
    return True


def _flushed(paths: PoolPaths) -> int:
    """How many changes that were flushed the next start of a stopped pool has to commit."""
    from thinmeta.errors import ThinMetaError
    from thinpoold import pool_record, recovery

    try:
        with _opened(paths) as store:
            record = store.record(pool_record.TABLE, pool_record.KEY)
            if record is None:
                return 0
            uuid = pool_record.PoolRecord.unpack(record).uuid
            return recovery.flushed(store, paths.recent, uuid)
    except ThinMetaError:
        # Damaged, which is said elsewhere.
        return 0


def _refuse_own(paths: PoolPaths, target: Path, store: "BlockStore") -> None:
    """Refuse a target that is one of the pool's own files: it would be lost."""
    from thinmeta.errors import ThinMetaError
    from thinpoold import pool_record

    own = [*paths.files]
    try:
        record = store.record(pool_record.TABLE, pool_record.KEY)
        if record is not None:
            own.append(pool_record.PoolRecord.unpack(record).data_file(paths.directory))
    except ThinMetaError:
        # Damaged: all the more reason to let an export be made.
        pass
    # One that is not there now the pool would take for its own once it is.
    if any(os.path.realpath(target) == os.path.realpath(one) or _same(target, one) for one in own):
        raise UserError(f"{target} is the pool's own file: name another")


def _same(one: Path, other: Path) -> bool:
    """Whether both are names of one file, which hard links may be."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _tell(result: "CheckResult") -> None:
    for problem in result.errors:
        output.emit(str(problem))
    facts: dict[str, Any] = result.to_json()
    verdict = "sound" if result.ok else "damaged"
    output.emit(
        f"{verdict}: {output.plural(facts['devices'], 'volume')}, "
        f"{output.plural(facts['mappings'], 'mapping')}, "
        f"{facts['data_used']:,} of {output.plural(facts['data_blocks'], 'data block')} and "
        f"{output.plural(facts['metadata_used'], 'metadata block')} in use, "
        f"{output.plural(result.leaked_blocks + result.leaked_metadata_blocks, 'block')} leaked"
    )
    if result.ok and result.needs_check:
        output.emit(
            "it is marked as in need of a check, and opens read-only: stop it, and run "
            "'thinpool check --clear-needs-check'"
        )
