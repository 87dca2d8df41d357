"""Private keys on the command line's side: files with a passphrase, tokens with a PIN. Loaded only to sign.

A key and a PIN stay here: the daemon gets signatures. Neither is ever an argument, where others could read it in `ps`.
"""

from __future__ import annotations

import os

from casemate.cli.fail import file_trouble, usage
from casemate.trust.keys.private import MAX_FILE_BYTES, SigningKey, is_sealed, load_private_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.flags import Arguments

#: PKCS#11 bounds a PIN at what a CK_ULONG counts; people at far less.
MAX_SECRET_BYTES = 1024


def open_key(text: str, arguments: Arguments) -> SigningKey:
    """The key that *text* names: a PEM file, or ``pkcs11:...`` (RFC 7512)."""
    if text.startswith("pkcs11:"):
        from casemate.trust.keys.apply import open_token_key

        return open_token_key(text, asked_pin(arguments), arguments.text("module") or "")
    data = read_file(text, MAX_FILE_BYTES)
    passphrase = b""
    if is_sealed(data):
        passphrase = secret(arguments.text("passphrase-file"), f"Passphrase of {text}: ", "--passphrase-file")
    return load_private_key(data, passphrase)


def asked_pin(arguments: Arguments) -> Callable[[str], bytes]:
    """Asks for the PIN when the token wants it, once; what was typed is used again for each signature (slot 9c)."""
    known: dict[str, bytes] = {}

    def ask(token: str) -> bytes:
        if token not in known:
            known[token] = secret(arguments.text("pin-file"), f"PIN of {token}: ", "--pin-file")
        return known[token]

    return ask


def secret(path: str | None, prompt: str, flag: str) -> bytes:
    """What stands in the file at *path* (without the line's end), or what is typed at the terminal."""
    if path is not None:
        return read_file(path, MAX_SECRET_BYTES).rstrip(b"\r\n")
    if not os.isatty(0):
        raise usage(f"no terminal to ask for the secret: {prompt.rstrip(': ')}", f"Give {flag} FILE.")
    import getpass

    return getpass.getpass(prompt).encode()


def read_file(path: str, limit: int) -> bytes:
    """All of a file, at most *limit* bytes."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise file_trouble(f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise file_trouble(f"{path} has more than {limit} bytes")
    return data


def write_new(path: str, data: bytes, mode: int) -> None:
    """A file that must not be there yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise file_trouble(f"{path}: {error.strerror}", "Choose another name; a key is never overwritten.") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
