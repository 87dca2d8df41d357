"""One tar header: 512 bytes to a value and back. Pure, and the only place that knows the field offsets.

Sources: POSIX.1-2017 pax (ustar interchange format, extended header), GNU tar manual ("Basic Tar Format",
"Storing Sparse Files"). Where the field's readers differ we follow Go's archive/tar, with which images are made
and scanned: types without content have none whatever their size says, global headers apply to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from casemate.image.errors import LayerInvalid

BLOCK_BYTES = 512
ZERO_BLOCK = bytes(BLOCK_BYTES)
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
CONTIGUOUS, OLD_REGULAR, GNU_SPARSE, GNU_LONG_NAME, GNU_LONG_LINK = b"7", b"\0", b"S", b"L", b"K"
PAX, PAX_GLOBAL, PAX_SUN = b"x", b"g", b"X"
#: Types that never have content.
HEADER_ONLY = frozenset((HARD_LINK, SYMLINK, CHARACTER, BLOCK, FOLDER, FIFO))
KNOWN = HEADER_ONLY | {REGULAR}
#: squashfs keeps times in 32 unsigned bits.
MAX_MTIME = (1 << 32) - 1
MAX_ID = (1 << 32) - 2
XATTR = b"SCHILY.xattr."


@dataclass(slots=True)
class Entry:
    """One entry, as it will be written. Names are bytes, without a leading ``/`` or ``./``; sizes in bytes."""

    name: bytes
    kind: bytes
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def octal(raw: bytes, what: str) -> int:
    """A numeric field: octal digits ended by space or NUL, or base-256 (GNU) when the first bit is set."""
    if raw[:1] and raw[0] & 0x80:
        negative = raw[0] == 0xFF
        value = int.from_bytes(raw, "big", signed=negative)
        return value if negative else value & ~(0x80 << (8 * (len(raw) - 1)))
    text = raw.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise LayerInvalid(f"{what} {raw!r} is not octal")
    return int(text, 8)


def check_sum(block: bytes) -> None:
    """Raise unless the header's check sum holds (unsigned as POSIX has it, signed as some old tars wrote)."""
    wanted = octal(block[148:156], "the check sum")
    total = sum(block) - sum(block[148:156]) + 256
    if total != wanted:
        high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
        if total - 256 * high != wanted:
            raise LayerInvalid(f"a header's check sum is {wanted}, not {total}: this is not tar, or it is damaged")


def parse(block: bytes) -> Entry:
    """A header block as an :class:`Entry`, its kind as it stands in the block (not yet checked)."""
    check_sum(block)
    magic = block[257:265]
    name = block[:100].partition(b"\0")[0]
    if magic[:6] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    kind = block[156:157]
    return Entry(
        name=name,
        kind=_kind(kind, name),
        size=octal(block[124:136], "a size"),
        mode=octal(block[100:108], "a mode"),
        uid=octal(block[108:116], "a uid"),
        gid=octal(block[116:124], "a gid"),
        mtime=octal(block[136:148], "a time"),
        link=block[157:257].partition(b"\0")[0],
        major=octal(block[329:337], "a device number") if magic[:5] == b"ustar" else 0,
        minor=octal(block[337:345], "a device number") if magic[:5] == b"ustar" else 0,
    )


def _kind(kind: bytes, name: bytes) -> bytes:
    if kind == OLD_REGULAR:
        return FOLDER if name.endswith(b"/") else REGULAR
    return REGULAR if kind == CONTIGUOUS else kind


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax extended header: ``LENGTH KEY=VALUE\\n`` each; order and repetition are kept."""
    records = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break
            raise LayerInvalid("a pax record has no length")
        end = position + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise LayerInvalid(f"a pax record's length {int(digits)} does not fit")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise LayerInvalid("a pax record has no key")
        records.append((key, value))
        position = end
    return records


def build(entry: Entry) -> bytes:
    """*entry* as header blocks: a ustar header, before it a pax header where ustar cannot hold it."""
    records: list[tuple[bytes, bytes]] = []
    name = entry.name + b"/" if entry.kind == FOLDER and entry.name != b"./" else entry.name
    if len(name) > 100:
        records.append((b"path", name))
        name = name[:100]
    link = entry.link
    if len(link) > 100:
        records.append((b"linkpath", link))
        link = link[:100]
    numbers = {}
    for key, value, digits in (
        (b"size", entry.size, 11),
        (b"uid", entry.uid, 7),
        (b"gid", entry.gid, 7),
        (b"mtime", entry.mtime, 11),
    ):
        if value >= 8**digits:
            records.append((key, b"%d" % value))
        numbers[key] = b"%0*o\0" % (digits, value if value < 8**digits else 0)
    records.extend((XATTR + key, entry.xattrs[key]) for key in sorted(entry.xattrs))
    block = _block(
        name, entry.kind, entry.mode, numbers[b"uid"], numbers[b"gid"], numbers[b"size"], numbers[b"mtime"], link,
        entry.major, entry.minor,
    )  # fmt: skip
    if not records:
        return block
    body = b"".join(_pax_record(key, value) for key, value in records)
    header = _block(
        b"PaxHeaders/x", PAX, 0o644, b"0000000\0", b"0000000\0", b"%011o\0" % len(body), b"00000000000\0", b"", 0, 0
    )
    return header + body + bytes(-len(body) % BLOCK_BYTES) + block


def _pax_record(key: bytes, value: bytes) -> bytes:
    length = base = len(key) + len(value) + 3
    while length != base + len(b"%d" % length):
        length = base + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, key, value)


def _block(  # noqa: PLR0917 - the order of the fields in the block
    name: bytes, kind: bytes, mode: int, uid: bytes, gid: bytes, size: bytes, mtime: bytes, link: bytes,
    major: int, minor: int,
) -> bytes:  # fmt: skip
    block = b"".join((
        name.ljust(100, b"\0"), b"%07o\0" % (mode & 0o7777), uid, gid, size, mtime, b"        ", kind,
        link.ljust(100, b"\0"),
        b"ustar\x0000", bytes(64), b"%07o\0" % major, b"%07o\0" % minor, bytes(167),
    ))  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
