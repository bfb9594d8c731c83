"""Settings: each value checked, names with either mark, all or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.errors import InvalidSetting
from thinpoold.settings import Settings, Value, as_text, parse


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("on-full", "error", "error"),
        ("on_full", "queue", "queue"),
        ("full-timeout", "0", 0),
        ("full-timeout", "90s", 90),
        ("full_timeout", 90, 90),
        ("discard", "nopassdown", "nopassdown"),
        ("skip-zeroing", "yes", True),
        ("skip-zeroing", "FALSE", False),
        ("skip_zeroing", True, True),
        ("low-water", "5%", 5),
        ("low-water", "100", 100),
        ("cache", "bufio", "bufio"),
        ("data-cache", "1G", 1 << 30),
        ("data_cache", 16 << 20, 16 << 20),
    ],
)
def test_good_values(name: str, given: Value, value: Value) -> None:
    assert parse({name: given}) == {name.replace("-", "_"): value}


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("on-full", "wait", "queue or error"),
        ("on-full", True, "queue or error"),
        ("full-timeout", "-1", "0 to 604800 seconds"),
        ("full-timeout", "1.5", "0 to 604800 seconds"),
        ("full-timeout", "", "0 to 604800 seconds"),
        ("full-timeout", "9" * 5000, "0 to 604800 seconds"),
        ("full_timeout", True, "0 to 604800 seconds"),
        ("full_timeout", 604801, "0 to 604800 seconds"),
        ("discard", "", "passdown, nopassdown or ignore"),
        ("skip-zeroing", "maybe", "yes or no"),
        ("skip_zeroing", 2, "yes or no"),
        ("low-water", "101%", "0% to 100%"),
        ("low-water", "10G", "0% to 100%"),
        ("cache", "none", "page or bufio"),
        ("data-cache", "1M", "a size from 16M to 1T"),
        ("data-cache", "2T", "a size from 16M to 1T"),
        ("data-cache", "much", "a size from 16M to 1T"),
        ("data_cache", True, "a size from 16M to 1T"),
    ],
)
def test_bad_values_are_refused_with_the_rule(name: str, given: Value, rule: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        parse({name: given})
    assert rule in str(refusal.value)
    assert name.replace("_", "-") in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("name", ["", "block-size", "on full", "x" * 1000])
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(InvalidSetting, match="there are on-full, full-timeout, discard"):
        parse({name: "1"})


def test_all_or_none() -> None:
    settings = Settings()
    with pytest.raises(InvalidSetting):
        settings.changed({"on_full": "error", "low_water": "x"})
    assert settings.changed({"on_full": "error"}) == Settings(on_full="error")


@given(
    st.builds(
        Settings,
        st.sampled_from(["queue", "error"]),
        st.integers(0, 604800),
        st.sampled_from(["passdown", "nopassdown", "ignore"]),
        st.booleans(),
        st.integers(0, 100),
        st.integers(0, 100000),
        st.sampled_from(["page", "bufio"]),
        st.integers(16 << 20, 1 << 40),
    )
)
def test_text_and_json_are_read_back(settings: Settings) -> None:
    assert Settings().changed(settings.as_json()) == settings
    texts = {name: as_text(name, value) for name, value in settings.as_json().items()}
    assert Settings().changed(texts) == settings
