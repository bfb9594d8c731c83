"""The rule for names: what keeps it, what breaks it, and that the refusal states it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.errors import InvalidName
from thinpoold.names import (
    MAX_NAME_BYTES,
    NEW_RULE,
    RULE,
    check_name,
    check_new_name,
    natural_key,
)


@pytest.mark.parametrize(
    "name", ["a", ".a", "...", "-x", "my disk", "größe", "磁盘", "x" * 127, "?#%&=", "\u200d"]
)
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("x" * 128, "has 128 bytes"),
        ("ü" * 64, "has 128 bytes"),
        ("a/b", "has a '/'"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("a\x7fb", "control character"),
        ("a\x85b", "control character"),
        ("a\u2028b", "control character"),
        ("a\udc80", "not valid UTF-8"),
        (".", "is that of a directory"),
        ("..", "is that of a directory"),
    ],
)
def test_bad_names_are_refused_with_the_rule(name: str, problem: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        check_name(name)
    message = str(refusal.value)
    assert problem in message
    assert RULE in message
    assert "\n" not in message


def test_the_message_says_what_kind_of_thing_was_named() -> None:
    with pytest.raises(InvalidName, match="bad pool name"):
        check_name("", "pool")


@given(st.text())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        assert check_name(text) == text
    except InvalidName:
        return
    encoded = text.encode()
    assert 1 <= len(encoded) <= MAX_NAME_BYTES
    assert b"/" not in encoded
    assert encoded not in (b".", b"..")
    assert not any(byte < 0x20 or byte == 0x7F for byte in encoded)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a\u202eb", "U+202E, right-to-left override,"),
        ("a\u2067b", "U+2067, right-to-left isolate,"),
        ("a\u200bb", "U+200B, zero width space,"),
        ("a\u00adb", "U+00AD, soft hyphen,"),
        ("\ufeffa", "U+FEFF, zero width no-break space,"),
        ("a\U000e0061", "U+E0061, tag latin small letter a,"),
    ],
)
def test_new_names_are_seen_as_they_are(name: str, what: str) -> None:
    assert check_name(name) == name
    with pytest.raises(InvalidName) as refusal:
        check_new_name(name)
    assert what in str(refusal.value)
    assert NEW_RULE in str(refusal.value)
    assert str(refusal.value).isascii()


@pytest.mark.parametrize("name", ["a", "größe", "磁盘", "שלום", "حجم", "e\u0301", "💾"])
def test_good_new_names(name: str) -> None:
    assert check_new_name(name) == name


def test_numbers_in_names_are_in_order() -> None:
    names = ["s", "s0", "s00", "s1", "s1a", "s02", "s2", "s10", "s10.9", "s10.10", "t", "ä1", "ä٣"]
    assert sorted({*names}, key=natural_key) == names
