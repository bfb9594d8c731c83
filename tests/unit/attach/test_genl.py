"""Netlink messages, byte for byte, and what a kernel may answer."""

import errno
import struct
import sys

import pytest

from thinpoold.attach import genl

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are little-endian")


def test_attributes_are_padded_and_their_length_is_not() -> None:
    assert genl.attribute(2, b"nbd\0x") == b"\x09\0\x02\0nbd\0x\0\0\0"
    assert genl.u32(1, 7) == b"\x08\0\x01\0\x07\0\0\0"
    assert genl.u64(2, 1 << 40) == b"\x0c\0\x02\0\0\0\0\0\0\x01\0\0"


def test_nested_attributes_are_marked_and_read_back() -> None:
    data = genl.nested(7, genl.nested(1, genl.u32(1, 3)), genl.nested(1, genl.u32(1, 4)))
    assert data[2:4] == b"\x07\x80"
    ((kind, items),) = genl.parse_attributes(data)
    assert kind == 7
    numbers = [dict(genl.parse_attributes(item))[1] for _, item in genl.parse_attributes(items)]
    assert numbers == [struct.pack("=I", 3), struct.pack("=I", 4)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_what_is_cut_short_is_left_out(cut: int) -> None:
    whole = genl.u32(1, 7) + genl.attribute(2, b"12345678")
    assert list(genl.parse_attributes(whole[:-cut])) == [(1, struct.pack("=I", 7))]


def test_a_request_and_its_answer() -> None:
    data = genl.request(0x1B, 3, 9, genl.u32(1, 0), version=1)
    assert data == b"\x1c\0\0\0\x1b\0\x05\0\x09\0\0\0\0\0\0\0" + b"\x03\x01\0\0" + genl.u32(1, 0)
    (message,) = genl.parse_messages(data)
    assert (message.kind, message.sequence, message.command) == (0x1B, 9, 3)
    assert message.attributes == {1: struct.pack("=I", 0)}


def error(number: int) -> bytes:
    return struct.pack("=IHHIIi", 36, genl.NLMSG_ERROR, 0, 5, 0, -number) + bytes(16)


def test_errors_are_raised_and_acknowledgements_are_not() -> None:
    (message,) = genl.parse_messages(error(0))
    assert (message.kind, message.sequence, message.attributes) == (genl.NLMSG_ERROR, 5, {})
    with pytest.raises(OSError, match="busy") as caught:
        list(genl.parse_messages(error(errno.EBUSY)))
    assert caught.value.errno == errno.EBUSY


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(genl.NoFamily):
        genl.GenericSocket("no-such-family")


def test_a_family_that_always_is() -> None:
    with genl.GenericSocket("nlctrl") as controller:
        answer = controller.call(
            genl.CTRL_CMD_GETFAMILY,
            genl.attribute(genl.CTRL_ATTR_FAMILY_NAME, b"nlctrl\0"),
            version=2,
        )
        assert answer[genl.CTRL_ATTR_FAMILY_ID] == struct.pack("=H", genl.GENL_ID_CTRL)
