"""TLS with a client certificate, for a daemon on another host. Loads ``ssl``: only for ``tcp://``."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from casemate.cli.errors import DaemonUnreachable, TlsFailed, UsageError
from casemate.cli.variables import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.wire.transport import Stream

#: Long enough for a slow link, short enough that a wrong address is told before one gives up.
CONNECT_TIMEOUT_S = 15.0

_FORM = "Write tcp://name:port, for example tcp://host.example:2376."


def connect_tls(address: str) -> Stream:
    """A TLS connection to *address* (``name:port``, ``[v6]:port``), both sides' certificates checked."""
    name, port = split_address(address)
    wrapper = _wrapper()
    try:
        plain = socket.create_connection((name, port), timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        raise DaemonUnreachable(f"no connection to {name} port {port}: {error.strerror or error}") from error
    try:
        secure = wrapper.wrap_socket(plain, server_hostname=name)
    except (ssl.SSLError, OSError) as error:
        plain.close()
        raise TlsFailed(f"TLS with {name} port {port} failed: {error}") from error
    secure.settimeout(None)
    return secure


def split_address(address: str) -> tuple[str, int]:
    name, colon, port = address.rpartition(":")
    name = name.removeprefix("[").removesuffix("]")
    if not colon or not name or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) <= 65_535:
        raise UsageError(f"the daemon's address {address[:120]!r} has no name or no port", remedy=_FORM)
    return name, int(port)


def _wrapper() -> ssl.SSLContext:
    """The certificates that the environment names; ~/.casemate/{cert,key,ca}.pem where it names none."""
    folder = Path(environment("HOME") or "/") / ".casemate"
    certificate = environment("CASEMATE_TLS_CERT") or str(folder / "cert.pem")
    key = environment("CASEMATE_TLS_KEY") or str(folder / "key.pem")
    authority = environment("CASEMATE_TLS_CA") or str(folder / "ca.pem")
    try:
        wrapper = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
        wrapper.minimum_version = ssl.TLSVersion.TLSv1_3
        wrapper.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise TlsFailed(
            f"certificate {certificate}, key {key} or authority {authority} cannot be read: {error}",
            remedy="Set CASEMATE_TLS_CERT, CASEMATE_TLS_KEY and CASEMATE_TLS_CA to PEM files that you can read.",
        ) from error
    return wrapper
