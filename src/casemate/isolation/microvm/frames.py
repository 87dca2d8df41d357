"""The control messages between hostd and the guest's agent. Pure; what comes from the guest is hostile.

The form is that of ``guest/wire/wire.h``: ``u8 kind, u8 zero, u16 zero, u32 number``, then fields, each ``u32 length,
u16 tag, u16 zero, bytes``, little-endian. Every message arrives as one SOCK_SEQPACKET message from the VM's monitor,
so there is no reassembly here and nothing to buffer.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from casemate.spec.errors import CasemateError

#: Bound on one message, as in wire.h: it must fit a SOCK_SEQPACKET message (net.core.wmem_default is 212,992).
MAX_MESSAGE_BYTES = 128 << 10
#: A guest's answer holds at most seven statistics files or 64 rows; a hostile one may try more.
MAX_GUEST_FIELDS = 256
MAX_HOST_FIELDS = 20_000
#: The guest's own words in an error: enough for a step and a path.
MAX_TEXT_BYTES = 400
MAX_ERRNO = 4095

_HEAD = struct.Struct("<BBHI")
_FIELD = struct.Struct("<IHH")


class GuestBroken(CasemateError):
    code = "microvm.guest_broken"
    status = 502
    title = "The guest's agent sent something that is not of its protocol"
    remedy = "The pod is stopped; start it anew. If its image is trusted, report this with the console's tail."


class Kind(enum.IntEnum):
    CONFIGURE = 2
    ROOTFS = 3
    CREATE = 4
    START = 5
    EXEC = 6
    SIGNAL = 7
    STATS = 8
    FREEZE = 9
    THAW = 10
    PROCESSES = 11
    POWEROFF = 12
    REMOVE = 13
    LIMITS = 14
    SHARE = 15
    TOP = 17
    NETWORK = 18
    FILES = 19
    SYNC = 20
    REHEARSE = 21
    READY = 64
    REPLY = 65
    EXITED = 66
    OOM = 67
    #: What casemate-vm asks of hostd (shim/shim.h), in the same form.
    ASK_CREATE = 100
    ASK_START = 101
    ASK_STATE = 102
    ASK_KILL = 103
    ASK_DELETE = 104
    ASK_EXEC = 105
    ASK_LIST = 106
    ASK_PS = 107
    ASK_PAUSE = 108
    ASK_RESUME = 109
    ASK_PREPARE = 120
    ASK_EVENTS = 121
    ASK_UPDATE = 122


class Tag(enum.IntEnum):
    ERRNO = 1
    TEXT = 2
    SEED = 4
    CLOCK = 5
    HOSTNAME = 6
    ADDRESS = 7
    GATEWAY = 8
    MAC = 9
    MTU = 10
    CONTAINER = 11
    LAYER = 12
    UPPER_BYTES = 13
    CHANNEL = 14
    ARG = 15
    ENV = 16
    CWD = 17
    UID = 18
    GID = 19
    GROUP = 20
    UMASK = 21
    CAPABILITIES = 22
    RLIMIT = 23
    FLAGS = 24
    SECCOMP = 25
    NAMESPACES = 26
    MOUNT = 27
    MASKED = 28
    READ_ONLY = 29
    SYSCTL = 30
    DEVICE = 31
    FILE = 32
    OOM_ADJ = 33
    WINDOW = 34
    LIMIT = 35
    SIGNAL = 36
    PROCESS = 37
    STATUS = 38
    FILES = 50
    STAT = 39
    VERSION = 40
    #: An entry of the shared folder (9p).
    SHARE = 42
    ROUTE = 60
    NEIGHBOUR = 61
    HOOK = 62
    NETNS = 63
    ROOT = 69
    SECCOMP_FLAGS = 70
    START_HOOK = 71
    STATE = 72
    JOIN_PIDS = 73
    PROPAGATION = 74
    DEVICE_RULE = 75
    CARD = 76
    CARD_NAME = 77
    SCHEDULER = 78
    IO_PRIORITY = 79
    PERSONALITY = 80


#: What the guest may say.
GUEST_KINDS = frozenset((Kind.READY, Kind.REPLY, Kind.EXITED, Kind.OOM))
#: What casemate-vm may say.
ASK_KINDS = frozenset(kind for kind in Kind if kind >= Kind.ASK_CREATE)


@dataclass(frozen=True, slots=True)
class Field:
    """One tagged value; its meaning is the tag's."""

    tag: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A control message: its kind, the request's number (0 for events), its fields in order."""

    kind: Kind
    number: int
    fields: tuple[Field, ...] = ()

    def texts(self, tag: Tag) -> list[str]:
        return [field.value.decode("utf-8", "replace") for field in self.fields if field.tag == tag]

    def text(self, tag: Tag, limit: int = MAX_TEXT_BYTES) -> str:
        """The first text of *tag*, at most *limit* bytes of it, with what a terminal would act on replaced."""
        for field in self.fields:
            if field.tag == tag:
                words = field.value[:limit].decode("utf-8", "replace")
                return "".join(c if c.isprintable() else "?" for c in words)
        return ""

    def number_of(self, tag: Tag, default: int = 0) -> int:
        """The first u32 of *tag*; :class:`GuestBroken` when it is not one."""
        for field in self.fields:
            if field.tag == tag:
                if len(field.value) != 4:
                    raise GuestBroken(f"field {tag.name} has {len(field.value)} bytes, allowed is 4")
                return int.from_bytes(field.value, "little")
        return default


def u32(tag: Tag, value: int) -> Field:
    return Field(tag, struct.pack("<I", value & 0xFFFF_FFFF))


def u64(tag: Tag, value: int) -> Field:
    return Field(tag, struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF))


def text(tag: Tag, value: str) -> Field:
    return Field(tag, value.encode("utf-8", "surrogateescape"))


def texts(tag: Tag, values: Iterable[str]) -> list[Field]:
    return [text(tag, value) for value in values]


def encode(kind: Kind, number: int, fields: Sequence[Field] = ()) -> bytes:
    """The bytes of a message; ``ValueError`` when it is larger than the agent takes."""
    parts = [_HEAD.pack(kind, 0, 0, number)]
    for field in fields:
        parts.append(_FIELD.pack(len(field.value), field.tag, 0))
        parts.append(field.value)
    data = b"".join(parts)
    if len(data) > MAX_MESSAGE_BYTES or len(fields) > MAX_HOST_FIELDS:
        raise ValueError(f"a message of {len(data)} bytes and {len(fields)} fields; allowed are {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes, kinds: frozenset[Kind] = GUEST_KINDS, max_fields: int = MAX_GUEST_FIELDS) -> Message:
    """The message that the guest sent; :class:`GuestBroken` for anything that is not exactly one of *kinds*."""
    if not _HEAD.size <= len(data) <= MAX_MESSAGE_BYTES:
        raise GuestBroken(f"a message of {len(data)} bytes, allowed are {_HEAD.size}..{MAX_MESSAGE_BYTES}")
    kind, zero, zeros, number = _HEAD.unpack_from(data)
    if zero or zeros or kind not in kinds:
        raise GuestBroken(f"a message of kind {kind} with reserved bits {zero:x} {zeros:x}")
    fields: list[Field] = []
    offset = _HEAD.size
    while offset < len(data):
        if len(data) - offset < _FIELD.size:
            raise GuestBroken(f"a field is cut off at byte {offset} of {len(data)}")
        length, tag, zero = _FIELD.unpack_from(data, offset)
        offset += _FIELD.size
        if zero or length > len(data) - offset:
            raise GuestBroken(f"field {tag} claims {length} bytes, {len(data) - offset} are left")
        if len(fields) == max_fields:
            raise GuestBroken(f"more than {max_fields} fields in one message")
        fields.append(Field(tag, data[offset : offset + length]))
        offset += length
    return Message(Kind(kind), number, tuple(fields))
