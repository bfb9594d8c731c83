"""Power cuts on the host: at any moment, whatever was not synced may be lost, torn or reordered.

A daemon's writes and syncs are recorded while a client uses it; then its files are put together as
a power cut at some moment may have left them. Each time the checkers must be silent, what was
flushed must be there, and the rest must be old or new. In tests/uml a real kernel's power goes.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.powerloss.cuts import Cutter, Recording, moments, record
from tests.powerloss.history import Lost
from tests.powerloss.recording import Event, What
from tests.support.pools import PoolRig
from tests.support.scratch import Scratch

DATA, METADATA, NOTES = 0, 1, (2, 3)
STEPS = 120
CUTS = 50
SLOW_STEPS = 600
SLOW_CUTS = 600


@pytest.fixture
def place(in_memory: Scratch | None, tmp_path: Path) -> Path:
    """Where files are put together: thousands of times, so in memory if possible."""
    return tmp_path if in_memory is None else in_memory.mktemp("c")


def test_some_cuts(new_pool: PoolMaker, place: Path, seed: int) -> None:
    recording = record(new_pool("16M", start=False), place, seed, lambda client: client.run(STEPS))
    found = moments(recording.events)
    chosen = random.Random(seed).sample(found, min(CUTS, len(found)))
    assert Cutter(recording, place / "cut", seed).cut(chosen, 2) > CUTS // 4


def test_a_write_with_fua_into_a_block_whose_mapping_was_answered_and_not_flushed(
    new_pool: PoolMaker, place: Path, seed: int
) -> None:
    """The block is written in place, without Python where there is the C filter."""
    rig = new_pool("16M", start=False)
    recording = record(rig, place, seed, lambda client: client.write_durably_into_new_blocks(12))
    found = moments(recording.events)
    assert Cutter(recording, place / "cut", seed).cut(found, 2) > 0
    worse = replace(recording, events=left_out(recording.events, without_syncs_of_notes))
    with pytest.raises(Lost):
        Cutter(worse, place / "worse", seed).cut(range(len(worse.events)), 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [{}, {"discard": "nopassdown"}, {"block_size": "128K"}],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_many_cuts(new_pool: PoolMaker, place: Path, seed: int, options: dict[str, str]) -> None:
    rig = new_pool("40M", start=False, **options)
    recording = record(rig, place, seed, lambda client: client.run(SLOW_STEPS))
    found = moments(recording.events)
    chosen = random.Random(seed).sample(found, min(SLOW_CUTS, len(found)))
    assert Cutter(recording, place / "cut", seed).cut(chosen, 3) > SLOW_CUTS // 4


# The rig itself: a daemon that leaves out a sync, as recorded by one that does not.


def without_syncs_of_data(event: Event) -> bool:
    return (event.what, event.file) != (What.SYNC, DATA)


def without_syncs_of_metadata(event: Event) -> bool:
    return (event.what, event.file) != (What.SYNC, METADATA)


@pytest.fixture(scope="module")
def recording(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Recording:
    rig = PoolRig(tmp_path_factory.mktemp("r") / "p")
    rig.init("16M")
    return record(rig, tmp_path_factory.mktemp("l"), 1, lambda client: client.run(STEPS))


def without_syncs_of_notes(event: Event) -> bool:
    return event.what is not What.SYNC or event.file not in NOTES


def left_out(events: Sequence[Event], kept: Callable[[Event], bool]) -> list[Event]:
    """The events without the calls that are not kept."""
    gone = {event.id for event in events if not kept(event)}
    return [event for event in events if event.id not in gone]


@pytest.mark.parametrize(
    "kept", [without_syncs_of_data, without_syncs_of_metadata, without_syncs_of_notes]
)
def test_a_sync_that_is_left_out_is_noticed(
    recording: Recording, place: Path, kept: Callable[[Event], bool]
) -> None:
    events = left_out(recording.events, kept)
    worse = replace(recording, events=events)
    with pytest.raises(Lost):
        Cutter(worse, place / "cut", 1).cut(moments(events), 3)


def test_punching_before_the_commit_is_noticed(recording: Recording, place: Path) -> None:
    events = list(recording.events)
    # Each hole is punched as early as its blocks' freeing: before the metadata is written.
    for number, event in enumerate(recording.events):
        if event.what is What.ZERO:
            events.remove(event)
            before = max(
                at for at in range(number) if recording.events[at].what is What.WRITE_DURABLY
            )
            events.insert(events.index(recording.events[before]), event)
    worse = replace(recording, events=events)
    with pytest.raises(Lost):
        Cutter(worse, place / "cut", 1).cut(moments(events), 3)
