"""Losses: what was answered of a volume and is gone, and an administrator's word that it may be.

Until then no client opens the volume: the one that was answered may be any of them, and would be
told by its next flush that all is well (`ledger`).

Thread-safety: any thread. `Pool.accepting` is held for one acceptance, its commit included: a
second one of the same loss would take back what is known of a client that has come since.
"""

from __future__ import annotations

from collections.abc import Sequence

from thinpoold.admin.facts import Fact, describe
from thinpoold.errors import UserError
from thinpoold.pool import Pool
from thinpoold.volumes import VolumeRecord


def accept_loss(pool: Pool, names: Sequence[str], dry_run: bool = False) -> Fact:
    """Let clients open volumes again of which something is lost, and say what was.

    The volume's content is another than its clients know, so its generation goes up. Raises
    `NoSuchVolume`, and `UserError` for a volume of which nothing is lost: then none is accepted.
    """
    with pool.accepting:
        return _accept_loss(pool, list(dict.fromkeys(names)), dry_run=dry_run)


def _accept_loss(pool: Pool, names: Sequence[str], *, dry_run: bool) -> Fact:
    core = pool.core
    with pool.looking():
        records = _lost(pool, names)
    losses = {record.name: core.losses.of(record.uuid) for record in records}
    if not dry_run:
        with pool.changing() as begin:
            # Those that there are by now.
            records = [record.jumped() for record in _lost(pool, names)]
            begin()
            for record in records:
                pool.put_volume(record)
        for record in records:
            core.ledger.accept(record.uuid)
            core.losses.forget(record.uuid)
    facts = describe(pool, records)
    return {
        "volumes": [{**fact, "losses": losses[str(fact["name"])]} for fact in facts],
        "dry_run": dry_run,
    }


def _lost(pool: Pool, names: Sequence[str]) -> list[VolumeRecord]:
    """The records of volumes of which something is lost, or raise. The core's lock is held."""
    records = [pool.registry.get(name) for name in names]
    for record in records:
        if not pool.core.ledger.lost(record.uuid):
            raise UserError(
                f"nothing of volume {record.name!r} is lost: there is nothing to accept"
            )
    return records
