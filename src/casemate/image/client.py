"""casemated's side of the image worker: start it, bound it, listen to it, end it. Light; never blocks the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from casemate.image.errors import WorkerFailed
from casemate.image.jobs import MAX_LINE_BYTES, Failure, Job, Progress, Result, decode_message, encode
from casemate.image.store import Store
from casemate.spec.errors import RemoteError, TimedOut

#: After TERM the worker removes what is half made; that takes milliseconds.
GRACE_S = 5.0
MAX_WORDS_BYTES = 8 << 10
#: A pull over a slow line takes hours; a worker that hangs is ended all the same.
TIMEOUT_S = 6 * 3600.0
#: The worker is of the same code as its caller, from a checkout as from an installation.
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
#: The worker without anybody who looks at the layers; who has an observer for them starts a module of its own.
WORKER = "casemate.image.worker"
#: What the worker may know of casemated's environment.
PASSED = ("PATH", "LANG", "TMPDIR", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")


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
    grace_s: float = GRACE_S,
    start: Spawn = spawn,
    module: str = WORKER,
) -> Result:
    """Run *job* in a worker (``python -m`` *module*) and give its :class:`Result`.

    *descriptors* are inherited by the worker under their numbers (``fd:N`` in import and export jobs). The result's
    lease must be released with :func:`casemate.image.leases.release` when the image is recorded. Raises
    :class:`RemoteError` with the worker's problem, :class:`WorkerFailed`, :class:`TimedOut`. Cancelling sends TERM,
    after 5 s KILL to the whole session, and reaps before it returns.
    """
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    environment["PYTHONPATH"] = PACKAGE_ROOT
    process = await start((sys.executable, "-P", "-m", module), environment, descriptors)
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
    try:
        async with asyncio.TaskGroup() as group:
            words = group.create_task(_drain(process))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                assert process.stdin is not None
                process.stdin.write(encode(job))
                await process.stdin.drain()
                process.stdin.close()
            answer = await _listen(process, on_progress)
            code = await process.wait()
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    match answer:
        case Result():
            return answer
        case Failure():
            raise RemoteError(answer.problem)
        case None:
            raise WorkerFailed(f"the image worker ended with {code}: {words.result()[-600:]}", exit_code=code)


async def _listen(
    process: asyncio.subprocess.Process, on_progress: Callable[[Progress], None] | None
) -> Result | Failure | None:
    assert process.stdout is not None
    answer: Result | Failure | None = None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError as error:
            raise WorkerFailed(f"the image worker wrote a line of more than {MAX_LINE_BYTES} bytes") from error
        if not line:
            return answer
        message = decode_message(line)
        if isinstance(message, Progress):
            if on_progress is not None:
                on_progress(message)
        else:
            answer = message


async def _drain(process: asyncio.subprocess.Process) -> str:
    """Read standard error to its end; the last 8 KiB are kept."""
    assert process.stderr is not None
    kept = b""
    while part := await process.stderr.read(MAX_WORDS_BYTES):
        kept = (kept + part)[-MAX_WORDS_BYTES:]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process, state: str, grace_s: float) -> None:
    """TERM, grace, KILL to the session, reap; then what the worker or a child of it left half made is removed."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            pass
    # Children of the worker (tar2sqfs, mmdebstrap) share its session; what is left of it ends now.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.to_thread(Store(state).sweep, process.pid)
