"""TLS with client certificates over TCP: a second server in the same loop, off by default."""

from __future__ import annotations

import socket
import ssl

from starlette.types import ASGIApp

from casemate.api.errors import StartRefused
from casemate.api.server import Server, make_server
from casemate.spec.settings import Settings


def tls_server(app: ASGIApp, settings: Settings) -> tuple[Server, socket.socket]:
    """The server and its bound socket; raises :class:`StartRefused` when the setting or a file is not right."""
    host, port = parse_listen(settings.text("api.tls_listen"))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartRefused(f"api.tls_listen {host}:{port}: {error.strerror}") from error
    try:
        server = make_server(
            app,
            settings,
            ssl_certfile=settings.text("api.tls_certificate"),
            ssl_keyfile=settings.text("api.tls_key"),
            ssl_ca_certs=settings.text("api.tls_client_ca"),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        server.config.load()
        assert server.config.ssl is not None
        server.config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    except (OSError, ssl.SSLError) as error:
        listener.close()
        raise StartRefused(
            f"TLS: {error}", remedy="Check api.tls_certificate, api.tls_key and api.tls_client_ca."
        ) from error
    return server, listener


def parse_listen(text: str) -> tuple[str, int]:
    """``address:port`` or ``[address]:port``; raises :class:`StartRefused`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise StartRefused(f"api.tls_listen {text[:80]!r} is not ADDRESS:PORT")
    return host, int(port)
