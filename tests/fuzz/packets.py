"""Fuzz what reads the kernel's events, packets' headers, TLS' first bytes and DNS messages: a value or a known error.

    python tests/fuzz/packets.py [SECONDS [FOLDER FOR FINDINGS AND CORPUS]]

Needs atheris; the seeds alone are played through on every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["casemate.node.flows", "casemate.node.dns"]):
        from casemate.node.dns import message
        from casemate.node.flows import clienthello, conntrack, packetlog
else:
    from casemate.node.dns import message
    from casemate.node.flows import clienthello, conntrack, packetlog

#: A connection's beginning over UDP as a kernel (6.18) wrote it, and a logged packet.
EVENT = bytes.fromhex(
    "a000000000010006000000000000000002000000340001801400018008000100c612050208000200c61305021c0002800500010011000000"
    "06000200830300000600030000070000340002801400018008000100c613050208000200c61205021c000280050001001100000006000200"
    "000700000600030083030000"
    "08000c000b4f46f20800030000000008080007000000001e0c001b0018ea6133f158db5a"
)
LOGGED = bytes.fromhex(
    "7800000000040000000000000000000002002138080001000800030012000a00636173656d6174653a64656e7900000008000500000000010"
    "8000b000000000008000e000000000008000c00000000002500090045000021a3bf4000401100e3c6120502c6130502decf0009000d964868"
    "656c6c6f000000"
)


def client_hello(name: bytes, before: bytes = b"") -> bytes:
    """The record that a client begins TLS with: *name* as its server name, extensions *before* it."""
    entry = b"\0" + struct.pack("!H", len(name)) + name
    extension = struct.pack("!HHH", 0, len(entry) + 2, len(entry)) + entry
    extensions = before + extension
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + struct.pack("!H", len(extensions)) + extensions
    handshake = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake


def query(name: str, kind: int = message.A, *, edns: bool = False) -> bytes:
    tail = b"\0\0\x29\x10\0\0\0\0\0\0\0" if edns else b""
    question = message.write_name(name) + struct.pack("!HH", kind, 1)
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, int(edns)) + question + tail


def seeds() -> list[bytes]:
    asked = message.read_query(query("www.example.org", edns=True))
    answered = message.respond(asked, 0, [(message.CNAME, 60, b"\3web\xc0\x10"), (message.A, 60, bytes(4))])
    https = message.respond(asked, 0, [(message.HTTPS, 60, b"\0\1\0\0\4\0\4\x7f\0\0\1")])
    found = [EVENT, LOGGED, client_hello(b"www.example.org"), query("www.example.org"), answered, https]
    found.append(query("a")[:12] + b"\xc0\x0c\0\1\0\1")
    return [bytes([place]) + one for one in found for place in range(5)]


def one_input(data: bytes) -> None:
    which, rest = data[:1], data[1:]
    if which == b"\0":
        with contextlib.suppress(ValueError):
            seen = conntrack.parse(rest)
            if seen is not None:
                assert len(seen.original.source) in (4, 16)
                conntrack.ending(rest, seen.rest)
    elif which == b"\1":
        with contextlib.suppress(ValueError):
            for logged in packetlog.parse(rest):
                packetlog.headers(logged.packet)
    elif which == b"\2":
        found = packetlog.headers(rest)
        assert found is None or 0 <= found[1] <= len(rest)
        name = clienthello.server_name(rest)
        assert len(name) <= 253
        assert name.isascii()
    elif which == b"\3":
        with contextlib.suppress(message.MessageBroken):
            asked = message.read_query(rest)
            message.cut(asked, message.respond(asked, 0, [(message.A, 1, bytes(4))] * 100))
    else:
        with contextlib.suppress(message.MessageBroken):
            answer = message.read_answer(rest)
            answer.addresses(), answer.hints(), answer.lifetime_s()
            asked = message.Query(1, 0x0100, "x", 1, 1, answer.question, True, 1232, False)
            assert message.read_answer(message.pass_on(asked, answer, 5)).question == answer.question


def main(argv: list[str]) -> None:
    seconds = int(argv[0]) if argv else 60
    folder = Path(argv[1]) if len(argv) > 1 else Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", "-max_len=2048"],
        one_input,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
