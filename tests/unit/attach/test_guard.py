"""What is refused because of how a pool is set."""

import pytest

from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.guard import MOST_FULL_SECONDS, refuse_repeats
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
    ],
)
def test_what_will_do(settings: dict[str, object], connections: int) -> None:
    refuse_repeats(settings, connections)


@pytest.mark.parametrize(("seconds", "said"), [(91, "may wait 91 s"), (0, "may wait for ever")])
def test_what_the_kernel_would_repeat(seconds: int, said: str) -> None:
    with pytest.raises(AttachRefused, match=said):
        refuse_repeats({"on_full": "queue", "full_timeout": seconds}, 2)
