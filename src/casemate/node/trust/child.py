"""Starts the trust child, speaks to it, and sees to its end; for casemated's loop.

The child (``python -m casemate.node.trust.worker``) reads feeds and package lists, which came from outside: it bounds
its own memory and time, and whatever happens to it happens to nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable

from casemate.image.client import PACKAGE_ROOT, PASSED
from casemate.node.trust.jobs import (
    MAX_LINE_BYTES,
    Answer,
    Failure,
    Job,
    Told,
    TrustChildFailed,
    decode_message,
    encode,
)
from casemate.spec.errors import RemoteError, TimedOut

MODULE = "casemate.node.trust.worker"
GRACE_S = 5.0
#: A whole OSV export (500,000 records) takes some minutes.
TIMEOUT_S = 3600.0
MAX_WORDS_BYTES = 8 << 10


async def run(
    job: Job, on_told: Callable[[Told], None] | None = None, *, timeout_s: float = TIMEOUT_S, module: str = MODULE
) -> Answer:
    """Have the child do *job*. Raises :class:`RemoteError` with the child's problem, :class:`TrustChildFailed`,
    :class:`TimedOut`. Cancelling ends the child, and waits for its end."""
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    environment["PYTHONPATH"] = PACKAGE_ROOT
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", module,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment, start_new_session=True, limit=MAX_LINE_BYTES,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            return await _converse(process, job, on_told)
    except TimeoutError as error:
        raise TimedOut(f"the trust job {type(job).__name__} did not end within {timeout_s:.0f} s") from error
    finally:
        await asyncio.shield(_end(process))


async def _converse(process: asyncio.subprocess.Process, job: Job, on_told: Callable[[Told], None] | None) -> Answer:
    try:
        async with asyncio.TaskGroup() as group:
            words = group.create_task(_drain(process))
            group.create_task(_give(process, job))
            found = await _listen(process, on_told)
            code = await process.wait()
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    match found:
        case Answer():
            return found
        case Failure():
            raise RemoteError(found.problem)
        case None:
            raise TrustChildFailed(f"the trust child ended with {code}: {words.result()[-600:]}", exit_code=code)


async def _give(process: asyncio.subprocess.Process, job: Job) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(encode(job))
        await process.stdin.drain()
        process.stdin.close()


async def _listen(
    process: asyncio.subprocess.Process, on_told: Callable[[Told], None] | None
) -> Answer | Failure | None:
    assert process.stdout is not None
    found: Answer | Failure | None = None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError as error:
            raise TrustChildFailed(f"the trust child wrote a line of more than {MAX_LINE_BYTES} bytes") from error
        if not line:
            return found
        message = decode_message(line)
        if not isinstance(message, Told):
            found = message
        elif on_told is not None:
            on_told(message)


async def _drain(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    kept = b""
    while part := await process.stderr.read(MAX_WORDS_BYTES):
        kept = (kept + part)[-MAX_WORDS_BYTES:]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """TERM, grace, KILL, reap."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
