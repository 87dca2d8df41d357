"""Fuzz the layer rewriter and the documents' parsers: any bytes give a value or a CasemateError, and quickly.

    python tests/fuzz/image_layer.py [--seconds 60] [--seed N]

With atheris installed it is guided by coverage (`python tests/fuzz/image_layer.py --atheris CORPUS`); without it,
seeds are mutated at random. A finding is written to the current folder and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import random
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from casemate.image.challenge import parse_challenge
from casemate.image.credentials import parse_config
from casemate.image.decompress import decompressed
from casemate.image.manifest import decode_index, decode_manifest, document_type
from casemate.image.rewrite import Rewriter
from casemate.spec.errors import CasemateError

BOUND_S = 5.0


def one(data: bytes) -> None:
    """Every parser on *data*; anything but a CasemateError is a finding."""
    attempts = (
        lambda: Rewriter(iter([data]), lambda _piece: None, max_entries=2000, max_bytes=1 << 22).run(),
        lambda: [None for _, _ in zip(range(64), decompressed(iter([data])), strict=False)],
        lambda: document_type(data, "", "fuzz", 1 << 20),
        lambda: decode_manifest(data, "fuzz", 1 << 20),
        lambda: decode_index(data, "fuzz", 1 << 20),
        lambda: parse_config(data, "fuzz"),
        lambda: parse_challenge(data.decode("latin-1")),
    )
    for attempt in attempts:
        start = time.monotonic()
        with contextlib.suppress(CasemateError):
            attempt()
        if time.monotonic() - start > BOUND_S:
            raise AssertionError("too slow")


def seeds() -> list[bytes]:
    found = [
        b'{"schemaVersion":2,"manifests":[{"digest":"sha256:' + b"a" * 64 + b'","size":1}]}',
        b'Bearer realm="x",scope="y"',
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
            for name, kind in (
                ("a", b"0"),
                ("d/.wh.x", b"0"),
                ("d/.wh..wh..opq", b"0"),
                ("l", b"2"),
                ("h", b"1"),
                ("n" * 90, b"5"),
                ("c", b"3"),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a" if kind in b"12" else ""
                if form == tarfile.PAX_FORMAT:
                    info.pax_headers = (
                        {"SCHILY.xattr.user.a": "b", "GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}
                        if name == "c"
                        else {}
                    )
                tar.addfile(info)
        found.append(raw.getvalue())
    return found


def mutate(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0:
                out[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del out[place : place + chance.randint(1, 600)]
            case 2:
                out[place:place] = out[: chance.randint(1, 1024)]
            case 3:
                out[place : place + 12] = chance.choice((b"\xff" * 12, b"77777777777\0", b"\x80" + b"\0" * 11))
            case 4:
                out[place:place] = chance.choice((b"..", b"/", b"\0", b".wh.", b"[" * 50, b"{" * 50, b"\x1f\x8b\x08"))
    if chance.random() < 0.7:
        fix_sums(out)
    return bytes(out)


def fix_sums(out: bytearray) -> None:
    """Make the check sums right, so that mutations reach what lies behind them."""
    for start in range(0, len(out) - 511, 512):
        if out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", metavar="CORPUS")
    options = parser.parse_args()
    if options.atheris:
        import atheris  # noqa: PLC0415 - optional

        atheris.Setup([sys.argv[0], options.atheris], one)
        atheris.Fuzz()
    chance = random.Random(options.seed)
    given = seeds()
    end = time.monotonic() + options.seconds
    count = 0
    while time.monotonic() < end:
        data = mutate(chance.choice(given), chance)
        count += 1
        try:
            one(data)
        except BaseException as error:
            path = Path(f"finding-{hashlib.sha256(data).hexdigest()[:12]}")
            path.write_bytes(data)
            print(f"{path}: {error!r}")
            return 1
    print(f"{count} inputs, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
