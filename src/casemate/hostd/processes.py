"""conmons of ours, found by their command line: for recovery and for the doctor, never on the way of a start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

_END_WAIT_S = 5.0


def conmons(run: Path) -> dict[str, int]:
    """Container id to pid, for every conmon (not of an exec) whose bundle lies below *run*."""
    found: dict[str, int] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (container := container_of(int(place.name), run)):
            found[container] = int(place.name)
    return found


def container_of(pid: int, run: Path) -> str:
    """The container that process *pid* supervises, when it is a conmon of ours and of root's; else nothing."""
    try:
        place = Path(f"/proc/{pid}")
        if place.joinpath("comm").read_text() != "conmon\n" or place.stat().st_uid != 0:
            return ""
        arguments = place.joinpath("cmdline").read_bytes().split(b"\0")
        if b"--exec" in arguments:
            return ""
        bundle = os.fsdecode(arguments[arguments.index(b"--bundle") + 1])
    except (OSError, ValueError, IndexError):
        return ""
    path = Path(bundle)
    return path.name if path.parent == run / "c" else ""


async def kill_conmon(pid: int, run: Path, container: str) -> None:
    """KILL the conmon of *container* with the runtime below it (one process group), and wait until it is gone."""
    try:
        number = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if container_of(pid, run) != container:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(number, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()

        def ended() -> None:
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(number, ended)
        try:
            async with asyncio.timeout(_END_WAIT_S):
                await gone
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(number)
    finally:
        os.close(number)
