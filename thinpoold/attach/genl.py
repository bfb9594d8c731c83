"""Generic netlink, as far as nbd needs it: attributes, messages, and a socket to send them on.

    message     struct nlmsghdr (16 bytes), struct genlmsghdr (4), attributes
    attribute   u16 length (of itself and its header), u16 type, payload, padding to 4 bytes

All in the machine's own byte order. See the kernel's Documentation/userspace-api/netlink.

Thread-safety: the functions are pure; a socket belongs to one thread.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

# linux/netlink.h, linux/genetlink.h
NETLINK_GENERIC = 16
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
CTRL_ATTR_MCAST_GROUPS = 7
CTRL_ATTR_MCAST_GRP_NAME = 1
CTRL_ATTR_MCAST_GRP_ID = 2

_MESSAGE = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE = 64 << 10

Attributes: TypeAlias = Mapping[int, bytes]


class NoFamily(OSError):  # noqa: N818 - told apart from other errors by who catches it
    """The kernel has no generic netlink family of that name: its module is not loaded."""


@dataclass(frozen=True)
class Message:
    """A message that came in: the command, and its attributes by type."""

    kind: int
    sequence: int
    command: int
    attributes: Attributes


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + _padding(len(payload))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Return an attribute of 64 bits."""
    return attribute(kind, struct.pack("=Q", value))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return types and payloads, in order; what is cut short at the end is left out."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += length + len(_padding(length))


def request(family: int, command: int, sequence: int, attributes: bytes, *, version: int) -> bytes:
    """Return a message that asks for an acknowledgement."""
    body = _GENERIC.pack(command, version, 0) + attributes
    length = _MESSAGE.size + len(body)
    return _MESSAGE.pack(length, family, NLM_F_REQUEST | NLM_F_ACK, sequence, 0) + body


def parse_messages(data: bytes) -> Iterator[Message]:
    """Return the messages of one datagram. Raises OSError for an error that is among them.

    An acknowledgement is an error of number 0: a Message without attributes.
    """
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(data, at)
        if length < _MESSAGE.size or at + length > len(data):
            return
        body = data[at + _MESSAGE.size : at + length]
        if kind == NLMSG_ERROR:
            (number,) = struct.unpack_from("=i", body)
            if number:
                raise OSError(-number, os.strerror(-number))
            yield Message(kind, sequence, 0, {})
        elif len(body) >= _GENERIC.size:
            command, _, _ = _GENERIC.unpack_from(body)
            yield Message(kind, sequence, command, dict(parse_attributes(body[_GENERIC.size :])))
        at += length + len(_padding(length))


def _padding(length: int) -> bytes:
    return bytes(-length % 4)


class GenericSocket:
    """A socket bound to one family. Raises NoFamily when the kernel does not have it."""

    def __init__(self, family: str) -> None:
        self._peer = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self._sequence = 0
        try:
            self._peer.bind((0, 0))
            name = attribute(CTRL_ATTR_FAMILY_NAME, family.encode() + b"\0")
            try:
                answer = self._ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name, version=2)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                raise NoFamily(errno.ENOENT, f"the kernel has no netlink family {family}") from None
            (self._family,) = struct.unpack("=H", answer[CTRL_ATTR_FAMILY_ID])
            self._groups = dict(_groups(answer.get(CTRL_ATTR_MCAST_GROUPS, b"")))
        except BaseException:
            self._peer.close()
            raise

    def fileno(self) -> int:
        return self._peer.fileno()

    def call(self, command: int, *attributes: bytes, version: int = 1) -> Attributes:
        """Send a command and return what is answered. Raises OSError with the kernel's errno."""
        return self._ask(self._family, command, b"".join(attributes), version=version)

    def subscribe(self, group: str) -> None:
        """Get the messages of a group from now on."""
        number = self._groups[group]
        self._peer.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, number)

    def receive(self) -> list[Message]:
        """Wait for messages of a group. Raises OSError(ENOBUFS) when some were lost."""
        return [one for one in parse_messages(self._peer.recv(_RECEIVE)) if one.command]

    def set_blocking(self, blocking: bool) -> None:
        self._peer.setblocking(blocking)

    def _ask(self, family: int, command: int, attributes: bytes, *, version: int) -> Attributes:
        self._sequence += 1
        self._peer.send(request(family, command, self._sequence, attributes, version=version))
        answer: Attributes = {}
        while True:
            for message in parse_messages(self._peer.recv(_RECEIVE)):
                if message.sequence != self._sequence:
                    continue
                if message.kind == NLMSG_ERROR:
                    return answer
                answer = message.attributes

    def close(self) -> None:
        self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _groups(data: bytes) -> Iterator[tuple[str, int]]:
    for _, item in parse_attributes(data):
        fields = dict(parse_attributes(item))
        name = fields[CTRL_ATTR_MCAST_GRP_NAME].rstrip(b"\0").decode()
        (number,) = struct.unpack("=I", fields[CTRL_ATTR_MCAST_GRP_ID])
        yield name, number
