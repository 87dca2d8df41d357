"""The connection's bytes: a unix socket by the C module directly, or TLS (loaded only then)."""

from __future__ import annotations

import _socket
import posix

from casemate.cli.fail import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Stream(Protocol):
        """What the client needs of a connection; ``socket`` and ``ssl`` sockets have it too."""

        def recv(self, size: int, /) -> bytes: ...
        def send(self, data: bytes | memoryview, /) -> int: ...
        def sendall(self, data: bytes, /) -> None: ...
        def fileno(self) -> int: ...
        def setblocking(self, flag: bool, /) -> None: ...
        def close(self) -> None: ...


def connect(host: str) -> Stream:
    """A connected stream to *host* (``unix:///path``, a path, or ``tcp://name:port``)."""
    if host.startswith("unix://"):
        return _unix(host[7:])
    if host.startswith("/"):
        return _unix(host)
    if host.startswith("tcp://"):
        from casemate.cli.wire.tls import connect_tls

        return connect_tls(host[6:])
    raise usage(
        f"the daemon's address {host[:120]!r} is not valid",
        "Write --host (or CASEMATE_HOST) unix:///run/casemate/api.sock or tcp://name:port.",
    )


def _unix(path: str) -> Stream:
    stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        stream.connect(path.encode("utf-8", "surrogateescape"))
    except OSError as error:
        stream.close()
        raise _unreachable(path, error) from None
    return stream


def _unreachable(path: str, error: OSError) -> Exception:
    """Why the socket cannot be used, with what to do: start the daemon, or join the group."""
    from casemate.cli.errors import DaemonUnreachable, SocketDenied

    if isinstance(error, PermissionError):
        group = _group_of(path)
        if group:
            return SocketDenied(
                f"permission denied on {path}; it is for root and the group {group!r}",
                remedy=f"Join the group: `sudo usermod -aG {group} $USER`, then log in again; or use sudo.",
            )
        return SocketDenied(f"permission denied on {path}")
    if isinstance(error, FileNotFoundError):
        return DaemonUnreachable(f"casemated is not running: there is no socket {path}")
    if isinstance(error, ConnectionRefusedError):
        return DaemonUnreachable(f"casemated is not running: nobody listens on {path}")
    return DaemonUnreachable(f"casemated's socket {path} cannot be used: {error.strerror or error}")


def _group_of(path: str) -> str:
    """The name of the group that may use the socket; of its folder where the socket cannot be seen."""
    import grp

    for place in (path, path.rpartition("/")[0] or "/"):
        try:
            return str(grp.getgrgid(posix.stat(place).st_gid).gr_name)
        except (OSError, KeyError):
            continue
    return ""
