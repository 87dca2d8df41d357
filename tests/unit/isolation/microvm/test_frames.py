"""The guest's messages: what is right is read, everything else is refused; nothing else ever happens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.isolation.microvm import frames
from casemate.isolation.microvm.frames import ASK_KINDS, Field, GuestBroken, Kind, Tag

FIELDS = st.lists(st.builds(Field, st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=6)


@given(st.sampled_from(sorted(frames.GUEST_KINDS)), st.integers(0, 0xFFFF_FFFF), FIELDS)
def test_what_is_encoded_is_decoded(kind: Kind, number: int, fields: list[Field]) -> None:
    message = frames.decode(frames.encode(kind, number, fields))
    assert (message.kind, message.number, list(message.fields)) == (kind, number, fields)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    try:
        message = frames.decode(data)
    except GuestBroken:
        return
    assert frames.encode(message.kind, message.number, message.fields) == data


HOSTILE = {
    "nothing": b"",
    "half a header": b"\x41\0\0\0\1\0\0",
    "a kind of the host's": frames.encode(Kind.CREATE, 1),
    "an unknown kind": struct.pack("<BBHI", 99, 0, 0, 1),
    "reserved bits": struct.pack("<BBHI", Kind.REPLY, 1, 0, 1),
    "more reserved bits": struct.pack("<BBHI", Kind.REPLY, 0, 1, 1),
    "half a field": frames.encode(Kind.REPLY, 1) + b"\0\0\0",
    "a field longer than the message": frames.encode(Kind.REPLY, 1) + struct.pack("<IHH", 1, 2, 0),
    "a field of four gigabytes": frames.encode(Kind.REPLY, 1) + struct.pack("<IHH", 0xFFFF_FFFF, 2, 0),
    "a field's reserved bits": frames.encode(Kind.REPLY, 1) + struct.pack("<IHH", 0, 2, 7),
    "too many fields": frames.encode(Kind.REPLY, 1, [Field(2, b"")] * (frames.MAX_GUEST_FIELDS + 1)),
    "too long": frames.encode(Kind.REPLY, 1) + bytes(frames.MAX_MESSAGE_BYTES),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_messages(data: bytes) -> None:
    with pytest.raises(GuestBroken) as caught:
        frames.decode(data)
    assert caught.value.code == "microvm.guest_broken"


def test_a_guest_cannot_ask() -> None:
    ask = frames.encode(Kind.ASK_DELETE, 1)
    assert frames.decode(ask, ASK_KINDS).kind is Kind.ASK_DELETE
    with pytest.raises(GuestBroken):
        frames.decode(ask)


def test_text_for_people_holds_nothing_that_a_terminal_acts_on() -> None:
    message = frames.decode(frames.encode(Kind.REPLY, 1, [Field(Tag.TEXT, b"\x1b[2J\xff" + b"a" * 1000)]))
    words = message.text(Tag.TEXT)
    assert "\x1b" not in words
    assert len(words) <= frames.MAX_TEXT_BYTES


def test_a_number_must_be_one() -> None:
    message = frames.decode(frames.encode(Kind.REPLY, 1, [Field(Tag.ERRNO, b"\1\2\3")]))
    with pytest.raises(GuestBroken):
        message.number_of(Tag.ERRNO)


def test_a_message_that_the_agent_would_not_take_is_not_sent() -> None:
    with pytest.raises(ValueError, match="allowed are"):
        frames.encode(Kind.CREATE, 1, [Field(Tag.ARG, bytes(frames.MAX_MESSAGE_BYTES))])


def test_kinds_and_tags_are_those_of_the_header(wire_header: dict[str, int]) -> None:
    for prefix, numbers in (("KIND_", {kind.name: kind.value for kind in Kind}), ("TAG_", dict(Tag.__members__))):
        for name, number in wire_header.items():
            if name.startswith(prefix) and name != "TAG_DEVICE_NAME":
                assert numbers[name.removeprefix(prefix)] == number, name
