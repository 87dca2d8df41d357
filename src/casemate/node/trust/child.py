"""Starts the trust child, speaks to it, and sees to its end; for casemated's loop.

The child (``python -m casemate.node.trust.worker``) reads feeds and package lists, which came from outside: it bounds
its own memory and time, and whatever happens to it happens to nobody else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from casemate.image import child
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
#: A whole OSV export (500,000 records) takes some minutes.
TIMEOUT_S = 3600.0


async def run(
    job: Job, on_told: Callable[[Told], None] | None = None, *, timeout_s: float = TIMEOUT_S, module: str = MODULE
) -> Answer:
    """Have the child do *job*. Raises :class:`RemoteError` with the child's problem, :class:`TrustChildFailed`,
    :class:`TimedOut`. Cancelling ends the child, and waits for its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", module,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=child.environment(), start_new_session=True, limit=MAX_LINE_BYTES,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            return await _converse(process, job, on_told)
    except TimeoutError as error:
        raise TimedOut(f"the trust job {type(job).__name__} did not end within {timeout_s:.0f} s") from error
    finally:
        await asyncio.shield(child.end(process))


async def _converse(process: asyncio.subprocess.Process, job: Job, on_told: Callable[[Told], None] | None) -> Answer:
    answers: list[Answer | Failure] = []

    def hear(line: bytes) -> None:
        message = decode_message(line)
        if not isinstance(message, Told):
            answers[:] = [message]
        elif on_told is not None:
            on_told(message)

    try:
        code, words = await child.converse(process, encode(job), hear)
    except child.LineTooLong as error:
        raise TrustChildFailed(f"the trust child wrote a line of more than {MAX_LINE_BYTES} bytes") from error
    match answers:
        case [Answer() as answer]:
            return answer
        case [Failure(problem)]:
            raise RemoteError(problem)
        case _:
            raise TrustChildFailed(f"the trust child ended with {code}: {words[-600:]}", exit_code=code)
