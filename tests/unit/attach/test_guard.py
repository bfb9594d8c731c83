"""What is refused because of how a pool is set."""

from dataclasses import replace

import pytest

from tests.unit.attach.test_records import MINE as ATTACHED
from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.guard import MOST_FULL_SECONDS, refuse_repeats, refuse_to_slow
from thinpoold.attach.keeper import LOOK_AFTER_SECONDS_MANY
from thinpoold.settings import Settings


def test_requests_may_wait_for_less_than_the_kernel_does() -> None:
    assert Settings().full_timeout <= MOST_FULL_SECONDS < LOOK_AFTER_SECONDS_MANY


@pytest.mark.parametrize(
    ("settings", "connections"),
    [
        ({"on_full": "queue", "full_timeout": 60}, 4),
        ({"on_full": "queue", "full_timeout": 91}, 1),
        ({"on_full": "queue", "full_timeout": 0}, 1),
        ({"on_full": "error", "full_timeout": 600}, 4),
        ({"iops": 0, "bps": 0}, 4),
        ({"iops": 1, "bps": 0}, 1),
    ],
)
def test_what_will_do(settings: dict[str, object], connections: int) -> None:
    refuse_repeats(settings, connections)


REPEATED = [
    ({"on_full": "queue", "full_timeout": 91}, "may wait 91 s"),
    ({"on_full": "queue", "full_timeout": 0}, "may wait for ever"),
    ({"iops": 1, "bps": 0}, "wait for as long as others come"),
    ({"iops": 0, "bps": 1 << 40}, "wait for as long as others come"),
]


@pytest.mark.parametrize(("settings", "said"), REPEATED)
def test_what_the_kernel_would_repeat(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AttachRefused, match=said):
        refuse_repeats({"read_only": False, **settings}, 2)


@pytest.mark.parametrize(("settings", "said"), REPEATED)
def test_what_cannot_be_set_any_more(settings: dict[str, object], said: str) -> None:
    several = replace(ATTACHED, device="/dev/nbd1", connections=4)
    refuse_to_slow(settings, [ATTACHED])
    with pytest.raises(AttachRefused, match=f"/dev/nbd1 is attached with 4.*{said}"):
        refuse_to_slow(settings, [ATTACHED, several])
