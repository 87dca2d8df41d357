"""SHA-1 for the WebSocket handshake (RFC 6455 wants it; nothing is secured by it), without ``hashlib``'s 3 ms."""

from __future__ import annotations

import _sha1  # type: ignore[import-not-found]  # typeshed has no stub for the C module


def sha1(data: bytes) -> bytes:
    digest: bytes = _sha1.sha1(data, usedforsecurity=False).digest()
    return digest
