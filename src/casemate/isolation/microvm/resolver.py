"""An engine's resolver on a loopback address (Docker's 127.0.0.11) for a guest, whose loopback is its own.

The guest's agent listens at that address in the guest and hands questions out over a channel of the port; at its other
end casemate-vm (``resolver``), as nobody in the waiter's network namespace, puts them to the engine's resolver. hostd
joins the two and reads neither. Source: libnetwork's embedded DNS server, resolver.go.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from casemate.host import durable, programs
from casemate.isolation.microvm import bundles, frames
from casemate.isolation.microvm.errors import AgentFailed, NetworkFailed
from casemate.isolation.microvm.frames import Field, Kind, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.oci import Config
from casemate.isolation.microvm.records import ContainerRecord
from casemate.spec.errors import CasemateError, LimitExceeded

_FILE = "/etc/resolv.conf"
_MAX_FILE_BYTES = 64 << 10
_LINE = re.compile(rb"(?m)^[ \t]*nameserver[ \t]+127\.0\.0\.11[ \t]*$")
_STDIN = 4
_SOCKET, _EXIT = 3, 4


def is_asked(config: Config, bundle: Path) -> bool:
    """Whether the file that the engine mounts as /etc/resolv.conf names its own resolver."""
    for one in config.mounts:
        if one.destination == _FILE and bundles.is_bind(one):
            try:
                return bool(_LINE.search(durable.read_bounded(bundle / one.source, _MAX_FILE_BYTES)))
            except (OSError, LimitExceeded):
                return False
    return False


async def begin(machine: Machine, one: ContainerRecord, shim: str) -> None:
    """Join the guest's listener to the engine's resolver, for as long as the container is. :class:`NetworkFailed`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    exits, watched = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with ours, theirs, exits, watched:
            words = [shim, "resolver", str(one.pid), str(_SOCKET)]
            # It ends with the channel, whoever is hostd then.
            programs.Child(
                programs.spawn(words, fds={_SOCKET: theirs.fileno(), _EXIT: exits.fileno()}, new_session=True)
            )
            channel = machine.next_channel()
            machine.monitor.attach(channel, [ours.fileno(), ours.fileno(), null, watched.fileno()])
        await machine.monitor.ask(Kind.FILES, _fields(one.id, channel))
    except (AgentFailed, OSError, programs.ProgramMissing) as error:
        detail = error.detail if isinstance(error, CasemateError) else str(error)
        raise NetworkFailed(
            f"the engine's resolver at 127.0.0.11 cannot be reached from the guest: {detail}"
        ) from error
    finally:
        os.close(null)


def _fields(container: str, channel: int) -> list[Field]:
    return [
        frames.text(Tag.CONTAINER, container),
        frames.text(Tag.PROCESS, f"n{channel}"),
        frames.u32(Tag.CHANNEL, channel),
        frames.u32(Tag.FLAGS, _STDIN),
        Field(Tag.FILES, b"N/"),
    ]
