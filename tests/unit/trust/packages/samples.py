"""Files of each kind, made byte by byte."""

from __future__ import annotations

import io
import struct
import zipfile


def elf(sections: dict[bytes, bytes]) -> bytes:
    """A little-endian ELF-64 file with these sections and the table of their names."""
    names, body, rows = b"\0", bytes(64), [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for name, data in {**sections, b".shstrtab": b""}.items():
        number, offset = len(names), len(body)
        names += name + b"\0"
        content = names if name == b".shstrtab" else data
        body += content
        rows.append(struct.pack("<IIQQQQIIQQ", number, 1, 0, 0, offset, len(content), 0, 0, 1, 0))
    head = (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1)
    )
    return head + body[64:] + b"".join(rows)


def varint(data: bytes) -> bytes:
    size, out = len(data), b""
    while size > 0x7F:
        out += bytes([size & 0x7F | 0x80])
        size >>= 7
    return out + bytes([size]) + data


def go_info(text: bytes, version: bytes = b"go1.21.3") -> bytes:
    return b"\xff Go buildinf:\x08\x02" + bytes(16) + varint(version) + varint(b"\x01" * 16 + text + b"\x02" * 16)


def jar(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return out.getvalue()


def header(tags: dict[int, str | list[str] | list[int]]) -> bytes:
    index, data = b"", b""
    for tag, value in tags.items():
        if isinstance(value, str):
            kind, count, raw = 6, 1, value.encode() + b"\0"
        elif isinstance(value[0], int):
            data += bytes(-len(data) % 4)
            kind, count, raw = 4, len(value), struct.pack(f">{len(value)}I", *value)
        else:
            kind, count, raw = 8, len(value), b"".join(str(text).encode() + b"\0" for text in value)
        index += struct.pack(">IIII", tag, kind, len(data), count)
        data += raw
    return struct.pack(">II", len(tags), len(data)) + index + data


BASH: dict[int, str | list[str] | list[int]] = {
    1000: "bash", 1001: "5.1.8", 1002: "6.el9", 1003: [2], 1022: "x86_64",
    1044: "bash-5.1.8-6.el9.src.rpm", 5096: "m:1:2:c",
    1116: [0, 1], 1117: ["bash", "sh"], 1118: ["/usr/bin/", "/bin/"],
}  # fmt: skip


def ndb(blobs: list[bytes]) -> bytes:
    slots, body = b"", b""
    for number, blob in enumerate(blobs, 1):
        packed = struct.pack("<4sIII", b"BlbS", number, 1, len(blob)) + blob
        packed += bytes(-(len(packed) + 12) % 16) + bytes(8) + b"BlbE"
        slots += struct.pack("<4sIII", b"Slot", number, (4096 + len(body)) // 16, len(packed) // 16)
        body += packed
    page = struct.pack("<4sIIIIIII", b"RpmP", 0, 1, 1, len(blobs) + 1, 0, 0, 0) + slots
    while len(page) < 4096:
        page += struct.pack("<4sIII", b"Slot", 0, 0, 0)
    return page + body
