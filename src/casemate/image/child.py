"""A child process for one job: a line of JSON in, lines out, words on standard error; its start, talk and end.

Who starts one says what a line means and what its failures are called.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

MAX_WORDS_BYTES = 8 << 10
#: After TERM a child removes what is half made; that takes milliseconds.
GRACE_S = 5.0
#: A child is of the same code as its caller, from a checkout as from an installation.
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
#: What a child may know of casemated's environment.
PASSED = ("PATH", "LANG", "TMPDIR", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")


class LineTooLong(Exception):
    """The child wrote a line beyond the limit of its pipe."""


def environment() -> dict[str, str]:
    """What a child gets of casemated's environment, and where its code is."""
    kept = {name: os.environ[name] for name in PASSED if name in os.environ}
    return kept | {"PYTHONPATH": PACKAGE_ROOT}


async def converse(
    process: asyncio.subprocess.Process, job: bytes, on_line: Callable[[bytes], None]
) -> tuple[int, str]:
    """Give *job*, hand each line to *on_line*, and answer exit code and last words (8 KiB) when the child has ended.

    What *on_line* raises is raised, and :class:`LineTooLong`; the caller ends the child.
    """
    try:
        async with asyncio.TaskGroup() as group:
            words = group.create_task(_drain(process))
            group.create_task(_give(process, job))
            await _listen(process, on_line)
            code = await process.wait()
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return code, words.result()


async def end(process: asyncio.subprocess.Process, grace_s: float = GRACE_S) -> None:
    """TERM, grace, KILL to the session, reap."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    # Children of the child (tar2sqfs, mmdebstrap) share its session; what is left of it ends now.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _give(process: asyncio.subprocess.Process, job: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(job)
        await process.stdin.drain()
        process.stdin.close()


async def _listen(process: asyncio.subprocess.Process, on_line: Callable[[bytes], None]) -> None:
    assert process.stdout is not None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError as error:
            raise LineTooLong from error
        if not line:
            return
        on_line(line)


async def _drain(process: asyncio.subprocess.Process) -> str:
    """Read standard error to its end; the last 8 KiB are kept."""
    assert process.stderr is not None
    kept = b""
    while part := await process.stderr.read(MAX_WORDS_BYTES):
        kept = (kept + part)[-MAX_WORDS_BYTES:]
    return kept.decode(errors="replace").strip()
