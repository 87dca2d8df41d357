"""casemated: ``main`` is its entry. Unprivileged; everything that needs privilege goes through hostd's client."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from pathlib import Path

from casemate.api.errors import StartRefused
from casemate.api.routes import ROUTES, SOCKETS
from casemate.api.routing import application
from casemate.api.server import make_server, unix_listener
from casemate.host import heap, operators
from casemate.host.settings_file import read_settings
from casemate.node.node import running_node
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings

_USAGE = "usage: casemated [--settings FILE]\n"
_SWITCH_S = 0.0005


def main(argv: list[str]) -> int:
    """Run until TERM or INT; the exit status. Options: ``--settings FILE``."""
    path: Path | None = None
    if argv:
        if len(argv) != 2 or argv[0] != "--settings":
            sys.stderr.write(_USAGE)
            return 2
        path = Path(argv[1])
    try:
        settings = read_settings(path)
        operators.check(settings)
        _check_identity()
        heap.keep_one()
        # What was imported stays: the collector need not look at it again, and need not look after each 700 values.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        # While a policy is compiled in a thread the loop waits so long for Python's lock, at each of its turns; 5 ms
        # are usual.
        sys.setswitchinterval(_SWITCH_S)
        return asyncio.run(serve(settings))
    except CasemateError as error:
        problem = error.to_problem()
        sys.stderr.write(f"casemated: {problem['detail']}\ncasemated: remedy: {problem['remedy']}\n")
        return 1


def _check_identity() -> None:
    """The rule of the two processes: what talks to the network holds no privilege."""
    if os.geteuid() == 0:
        raise StartRefused("casemated was started as root", remedy="Start it as the user that daemon.user names.")


async def serve(settings: Settings) -> int:
    """Serve the API until told to end."""
    os.umask(0o027)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        listener = unix_listener(settings)
    except OSError as error:
        raise StartRefused(
            f"the API's socket below {settings.text('paths.run')}: {error.strerror}",
            remedy="The folder must be there and belong to the daemon's user.",
        ) from error
    async with running_node(settings) as node:
        app = application(ROUTES, SOCKETS, node)
        servers = [(make_server(app, settings), listener)]
        if settings.text("api.tls_listen"):
            from casemate.api.tls import tls_server  # noqa: PLC0415 - off by default

            servers.append(tls_server(app, settings))
        async with asyncio.TaskGroup() as tasks:
            for server, bound in servers:
                tasks.create_task(server.serve(sockets=[bound]))
            _tell_init("READY=1")
            await stop.wait()
            _tell_init("STOPPING=1")
            # Whoever waits on a stream is sent away first, so that the servers need not wait for them.
            node.ending.set()
            node.core.hub.close()
            for server, _ in servers:
                server.end()
    return 0


def _tell_init(state: str) -> None:
    """sd_notify(3), where an init asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(address)
        notify.sendall(state.encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
