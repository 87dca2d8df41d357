"""Network namespaces: made and entered by a thread that ends afterwards, never by the daemon's main thread.

unshare(2) and setns(2) with CLONE_NEWNET change the calling thread alone. A thread of its own for each piece of
work costs 0.1 ms and no program; it is never a pooled one, so no later work can find itself elsewhere.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from casemate.host import mounts, syscalls
from casemate.spec.errors import TimedOut

T = TypeVar("T")

#: Bound on work inside a namespace: a handful of netlink messages.
_TIMEOUT_S = 30.0


async def in_own_thread(function: Callable[[], T], *, timeout_s: float = _TIMEOUT_S) -> T:
    """Run *function* in a new thread that ends with it; its result or its exception.

    The thread cannot be stopped. A waiter that is cancelled waits for its end first, so that what it undoes is the
    final state. Raises :class:`TimedOut` after *timeout_s*; the thread then goes on unseen.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = function()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop was closed in between
            loop.call_soon_threadsafe(deliver, result, failed)

    # Not by threading.Thread: its start() blocks the loop until the new thread has had a turn, milliseconds on a
    # busy machine.
    _thread.start_new_thread(body, ())
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(future)
    except TimeoutError as error:
        raise TimedOut(f"work in a thread of its own did not end within {timeout_s:g} s") from error
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(future)
        raise


async def inside(netns_fd: int, function: Callable[[], T]) -> T:
    """Run *function* in a thread that is in the network namespace of *netns_fd*."""

    def body() -> T:
        syscalls.setns(netns_fd, syscalls.CLONE_NEWNET)
        return function()

    return await in_own_thread(body)


async def create(pin: Path, function: Callable[[], T]) -> T:
    """A new network namespace, pinned by a bind mount at *pin*, with *function* run inside it.

    Nothing stays when *function* or the pinning fails.
    """

    def body() -> T:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        # O_EXCL: a pin that exists belongs to somebody.
        os.close(os.open(pin, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        try:
            syscalls.mount("/proc/thread-self/ns/net", pin, None, syscalls.MS_BIND)
            made.append(pin)
            return function()
        except BaseException:
            remove(pin)
            raise

    made: list[Path] = []
    try:
        return await in_own_thread(body)
    except BaseException:
        # Cancelled, perhaps after the thread had done it all.
        for one in made:
            remove(one)
        raise


def remove(pin: Path) -> bool:
    """Take the pin away; the namespace goes with its last process. False when there was no pin."""
    mounted = mounts.unmount(pin, detach=True)
    with contextlib.suppress(FileNotFoundError):
        pin.unlink()
        return True
    return mounted


def is_pinned(pin: Path) -> bool:
    """Whether *pin* holds a network namespace (and is not just the file that was left of one)."""
    try:
        # What is bound there lies on nsfs, which has a device number of its own.
        return pin.lstat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False
