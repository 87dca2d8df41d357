"""casemated's side of the image worker: start it, bound it, listen to it, end it. Light; never blocks the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from casemate.image import child
from casemate.image.errors import WorkerFailed
from casemate.image.jobs import MAX_LINE_BYTES, Failure, Job, Progress, Result, decode_message, encode
from casemate.image.store import Store
from casemate.spec.errors import RemoteError, TimedOut

#: A pull over a slow line takes hours; a worker that hangs is ended all the same.
TIMEOUT_S = 6 * 3600.0
#: The worker without anybody who looks at the layers; who has an observer for them starts a module of its own.
WORKER = "casemate.image.worker"


class Spawn(Protocol):
    """How the worker is started: a process with pipes, in a session of its own."""

    async def __call__(
        self, command: tuple[str, ...], environment: Mapping[str, str], descriptors: tuple[int, ...]
    ) -> asyncio.subprocess.Process: ...


async def spawn(
    command: tuple[str, ...], environment: Mapping[str, str], descriptors: tuple[int, ...]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment),
        pass_fds=descriptors,
        start_new_session=True,
        limit=MAX_LINE_BYTES,
    )


async def run_job(
    job: Job,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    descriptors: tuple[int, ...] = (),
    timeout_s: float = TIMEOUT_S,
    grace_s: float = child.GRACE_S,
    start: Spawn = spawn,
    module: str = WORKER,
) -> Result:
    """Run *job* in a worker (``python -m`` *module*) and give its :class:`Result`.

    *descriptors* are inherited by the worker under their numbers (``fd:N`` in import and export jobs). The result's
    lease must be released with :func:`casemate.image.leases.release` when the image is recorded. Raises
    :class:`RemoteError` with the worker's problem, :class:`WorkerFailed`, :class:`TimedOut`. Cancelling sends TERM,
    after 5 s KILL to the whole session, and reaps before it returns.
    """
    process = await start((sys.executable, "-P", "-m", module), child.environment(), descriptors)
    try:
        async with asyncio.timeout(timeout_s):
            return await _converse(process, job, on_progress)
    except TimeoutError as error:
        raise TimedOut(f"the image job {type(job).__name__} did not end within {timeout_s:.0f} s") from error
    finally:
        await asyncio.shield(_end(process, job.state, grace_s))


async def _converse(
    process: asyncio.subprocess.Process, job: Job, on_progress: Callable[[Progress], None] | None
) -> Result:
    answers: list[Result | Failure] = []

    def hear(line: bytes) -> None:
        message = decode_message(line)
        if not isinstance(message, Progress):
            answers[:] = [message]
        elif on_progress is not None:
            on_progress(message)

    try:
        code, words = await child.converse(process, encode(job), hear)
    except child.LineTooLong as error:
        raise WorkerFailed(f"the image worker wrote a line of more than {MAX_LINE_BYTES} bytes") from error
    match answers:
        case [Result() as result]:
            return result
        case [Failure(problem)]:
            raise RemoteError(problem)
        case _:
            raise WorkerFailed(f"the image worker ended with {code}: {words[-600:]}", exit_code=code)


async def _end(process: asyncio.subprocess.Process, state: str, grace_s: float) -> None:
    """End it; then what the worker or a child of it left half made is removed."""
    await child.end(process, grace_s)
    await asyncio.to_thread(Store(state).sweep, process.pid)
