"""What Go's linker and ``cargo auditable`` write into an ELF executable.

Sources: ELF-64 Object File Format 1.5; Go's debug/buildinfo (the form since Go 1.18); cargo-auditable's PARSING.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Package, PackageListInvalid, make_package

ELF_MAGIC = b"\x7fELF"
_GO_MAGIC = b"\xff Go buildinf:"
_GO_ALIGN = 16
_GO_INLINE = 2
_MAX_SECTIONS = 10_000
_MAX_NAMES_BYTES = 1 << 20
#: The list of every module in Kubernetes has 30 KiB.
_MAX_INFO_BYTES = 4 << 20
#: Where an external linker put the build information it is somewhere in the data; that is searched so far.
_MAX_SEARCH_BYTES = 64 << 20
_MAX_AUDIT_BYTES = 8 << 20  # the bound that cargo-auditable's own reader has
_NO_BITS = 8


class Section(NamedTuple):
    name: bytes
    kind: int
    offset: int
    size: int


#: As many bytes of a file as tell which of it to keep: the ELF header and the program headers.
HEAD_BYTES = 4096
#: A smaller executable is kept whole; of a larger one the writable segments and the end, where the section headers are.
_WHOLE_BYTES = 16 << 20
_TAIL_BYTES = 256 << 10
_MAX_SEGMENTS = 64
_LOAD, _WRITABLE = 1, 2


def wanted(head: bytes, size: int) -> list[tuple[int, int]]:
    """The ranges (start, end) of an executable of *size* bytes that :func:`parse_executable` looks at, in order.

    *head*: its first :data:`HEAD_BYTES`, or all. Nothing for what is no ELF file.
    """
    if len(head) < 64 or head[:4] != ELF_MAGIC:
        return []
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    ranges = [(0, len(head)), *_writable(head), (max(size - _TAIL_BYTES, 0), size)]
    (start,) = struct.unpack_from("<Q" if head[5] == 1 else ">Q", head, 40) if head[4] == 2 else (size,)
    return [*ranges, (max(start - _TAIL_BYTES, 0), size)] if start < size <= start + (64 << 20) else ranges


def _writable(head: bytes) -> list[tuple[int, int]]:
    """The file ranges of the writable segments (a linker puts Go's build information at the beginning of one)."""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        (start,) = struct.unpack_from(order + "Q", head, 32)
        entry_bytes, count = struct.unpack_from(order + "HH", head, 54)
        layout = struct.Struct(order + "IIQQQQQQ")
    else:
        (start,) = struct.unpack_from(order + "I", head, 28)
        entry_bytes, count = struct.unpack_from(order + "HH", head, 42)
        layout = struct.Struct(order + "IIIIIIII")
    if entry_bytes != layout.size or count > _MAX_SEGMENTS or start + count * entry_bytes > len(head):
        return []
    found = []
    for row in layout.iter_unpack(head[start : start + count * entry_bytes]):
        flags, offset, size = (row[1], row[2], row[5]) if wide else (row[6], row[1], row[4])
        if row[0] == _LOAD and flags & _WRITABLE:
            found.append((offset, offset + min(size, _MAX_SEARCH_BYTES)))
    return found


def parse_executable(path: str, content: Content) -> Iterator[Package]:
    """The modules of a Go executable or the crates of an auditable Rust one; nothing for any other."""
    if content.size < 64 or content.read(0, 4) != ELF_MAGIC:
        return
    found = {section.name: section for section in sections(content)}
    if go := found.get(b".go.buildinfo"):
        yield from _go(path, content, [(go.offset, go.offset + go.size)])
    elif segments := _writable(content.read(0, min(HEAD_BYTES, content.size))):
        # An external linker has no section of that name, and a stripped file no sections at all.
        yield from _go(path, content, segments, must=b".gopclntab" in found)
    if audit := found.get(b".dep-v0"):
        yield from _rust(path, content, audit)


def sections(content: Content) -> list[Section]:
    """The section headers; none where the file has none or they lie outside of it (stripped, packed: no error)."""
    head = content.read(0, 64)
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        (start,) = struct.unpack_from(order + "Q", head, 40)
        entry_bytes, count, names_number = struct.unpack_from(order + "HHH", head, 58)
        layout = struct.Struct(order + "IIQQQQIIQQ")
    else:
        (start,) = struct.unpack_from(order + "I", head, 32)
        entry_bytes, count, names_number = struct.unpack_from(order + "HHH", head, 46)
        layout = struct.Struct(order + "IIIIIIIIII")
    if (
        not start
        or entry_bytes != layout.size
        or not 0 < count <= _MAX_SECTIONS
        or start + count * entry_bytes > content.size
    ):
        return []
    rows = list(layout.iter_unpack(content.read(start, count * entry_bytes)))
    if names_number >= count:
        return []
    names_offset, names_size = rows[names_number][4], rows[names_number][5]
    if names_size > _MAX_NAMES_BYTES or names_offset + names_size > content.size:
        return []
    names = content.read(names_offset, names_size)
    return [
        Section(names[row[0] : row[0] + 64].partition(b"\0")[0], row[1], row[4], 0 if row[1] == _NO_BITS else row[5])
        for row in rows
        if row[4] + (0 if row[1] == _NO_BITS else row[5]) <= content.size
    ]


def _go(path: str, content: Content, ranges: list[tuple[int, int]], *, must: bool = True) -> Iterator[Package]:
    for begin, end in ranges:
        data = (
            content.read(begin, min(end, content.size, begin + _MAX_SEARCH_BYTES) - begin)
            if begin < content.size
            else b""
        )
        start = data.find(_GO_MAGIC)
        while start >= 0 and start % _GO_ALIGN:
            start = data.find(_GO_MAGIC, start + 1)
        if start >= 0:
            yield from _go_information(path, data, start)
            return
    if must:
        raise PackageListInvalid(f"{path}: a Go executable without build information")


def _go_information(path: str, data: bytes, start: int) -> Iterator[Package]:
    if start + 32 > len(data) or not data[start + 15] & _GO_INLINE:
        raise PackageListInvalid(f"{path}: built by Go before 1.18, whose build information is not read")
    version, position = _go_string(path, data, start + 32)
    modules, _ = _go_string(path, data, position)
    release = version.decode(errors="replace").split(" ")[0]
    if release.startswith("go1"):
        yield make_package("golang", "stdlib", release.removeprefix("go"))
    # Sixteen marks before and after, which are no text, guard the list.
    if len(modules) >= 33 and modules[-17:-16] == b"\n":
        modules = modules[16:-16]
    yield from _go_modules(path, modules.decode(errors="replace"))


def _go_string(path: str, data: bytes, position: int) -> tuple[bytes, int]:
    size = shift = 0
    for _ in range(5):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if size > _MAX_INFO_BYTES or position + size > len(data):
                break
            return data[position : position + size], position + size
    raise PackageListInvalid(f"{path}: the Go build information is cut off or too long")


def _go_modules(path: str, text: str) -> Iterator[Package]:
    """Lines ``mod|dep PATH VERSION [SUM]``; a line ``=> PATH VERSION`` replaces the one before it."""
    pending: tuple[str, str] | None = None
    for line in text.split("\n"):
        fields = line.split("\t")
        if fields[0] not in ("mod", "dep", "=>"):
            continue
        if len(fields) < 2:
            raise PackageListInvalid(f"{path}: the Go build information has the line {line[:80]!r}")
        if fields[0] != "=>" and pending:
            yield make_package("golang", *pending)
        version = fields[2] if len(fields) > 2 else ""
        # A module that was built from a checkout has no version that an advisory could name.
        pending = (fields[1], version) if version and version != "(devel)" else None
    if pending:
        yield make_package("golang", *pending)


class _Crate(msgspec.Struct):
    name: str
    version: str
    kind: str = "runtime"
    source: Any = None


class _Audit(msgspec.Struct):
    packages: list[_Crate]


def _rust(path: str, content: Content, section: Section) -> Iterator[Package]:
    packed = content.read(section.offset, min(section.size, _MAX_AUDIT_BYTES))
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, _MAX_AUDIT_BYTES)
        if not unpacker.eof:
            raise PackageListInvalid(
                f"{path}: the audit data unpack to more than {_MAX_AUDIT_BYTES} bytes, or are cut off"
            )
        found = msgspec.json.decode(data, type=_Audit)
    except (zlib.error, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PackageListInvalid(f"{path}: audit data: {error}") from error
    for crate in found.packages:
        if crate.kind != "build" and crate.source != "local":
            yield make_package("cargo", crate.name, crate.version)
