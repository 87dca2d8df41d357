"""Zip archives (PKWARE APPNOTE 6.3), read from their central directory; bounded in entries and in bytes unpacked.

``zipfile`` is not used: it wants a file object, believes the directory's count and size, and unpacks without a bound
of the caller's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import PackageListInvalid

_END, _CENTRAL, _LOCAL = b"PK\5\6", b"PK\1\2", b"PK\3\4"
_END_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 46, 30
_MAX_COMMENT_BYTES = 0xFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1
#: The largest real archives (IDE distributions, uber jars) have some 100,000.
MAX_ENTRIES = 200_000
_MAX_DIRECTORY_BYTES = 64 << 20
_ZIP64 = 0xFFFFFFFF


class Member(NamedTuple):
    name: str
    offset: int
    packed_bytes: int
    bytes: int
    method: int
    flags: int


class Budget:
    """How many bytes may still be unpacked, over all archives inside one file."""

    def __init__(self, unpacked_bytes: int, entries: int = MAX_ENTRIES) -> None:
        self.unpacked_bytes = unpacked_bytes
        self.entries = entries

    def spend(self, path: str, count: int, entries: int = 0) -> None:
        self.unpacked_bytes -= count
        self.entries -= entries
        if self.unpacked_bytes < 0 or self.entries < 0:
            raise PackageListInvalid(f"{path}: unpacks to more than an archive may (a decompression bomb?)")


def members(path: str, content: Content, budget: Budget) -> Iterator[Member]:
    """The central directory's entries. What stands before the archive (a start script) is passed over."""
    tail_bytes = min(content.size, _END_BYTES + _MAX_COMMENT_BYTES)
    tail = content.read(content.size - tail_bytes, tail_bytes)
    place = tail.rfind(_END)
    if place < 0 or place + _END_BYTES > len(tail):
        raise PackageListInvalid(f"{path}: is no zip archive, or was cut off")
    count, size, start = struct.unpack_from("<HII", tail, place + 10)
    end = content.size - tail_bytes + place
    if size > _MAX_DIRECTORY_BYTES or size > end or start == _ZIP64:
        raise PackageListInvalid(f"{path}: a zip directory of {size} bytes at {start}")
    shift = end - size - start
    if shift < 0:
        raise PackageListInvalid(f"{path}: the zip directory lies behind its end")
    budget.spend(path, 0, count)
    directory = content.read(end - size, size)
    position = 0
    while position + _CENTRAL_BYTES <= size and directory[position : position + 4] == _CENTRAL:
        flags, method = struct.unpack_from("<HH", directory, position + 8)
        packed, real, name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<IIHHH", directory, position + 20)
        (offset,) = struct.unpack_from("<I", directory, position + 42)
        name = directory[position + _CENTRAL_BYTES : position + _CENTRAL_BYTES + name_bytes]
        budget.spend(path, 0, 1)
        yield Member(name.decode(errors="replace"), offset + shift, packed, real, method, flags)
        position += _CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes
    if position != size:
        raise PackageListInvalid(f"{path}: the zip directory holds something that is no entry")


def unpack(path: str, content: Content, member: Member, budget: Budget, limit: int) -> bytes:
    """*member*'s bytes, at most *limit*; raises for more, for encryption, and for a body that does not unpack."""
    what = f"{path}!/{member.name[:200]}"
    if member.flags & _ENCRYPTED or member.method not in (_STORED, _DEFLATED):
        raise PackageListInvalid(f"{what}: is encrypted, or packed by method {member.method}")
    if member.bytes > limit:
        raise PackageListInvalid(f"{what}: says {member.bytes} bytes; {limit} are allowed")
    header = content.read(member.offset, _LOCAL_BYTES)
    if header[:4] != _LOCAL:
        raise PackageListInvalid(f"{what}: is not where the directory says")
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    packed = content.read(member.offset + _LOCAL_BYTES + name_bytes + extra_bytes, member.packed_bytes)
    if member.method == _STORED:
        data = packed
    else:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(packed, member.bytes + 1)
        except zlib.error as error:
            raise PackageListInvalid(f"{what}: {error}") from error
    budget.spend(path, len(data))
    if len(data) != member.bytes:
        raise PackageListInvalid(f"{what}: holds {len(data)} bytes or more, and says {member.bytes}")
    return data
