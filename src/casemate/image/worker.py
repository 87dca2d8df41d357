"""The image worker: ``python -m casemate.image.worker`` reads one job, does it, and ends.

It runs as casemated's user in a session of its own and bounds itself before it reads anything: memory, descriptors,
size of a file, core dumps. TERM removes what is half made and ends it; so does the death of its parent.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from casemate.host import ownlimits
from casemate.image.errors import WorkerFailed, from_os_error
from casemate.image.jobs import (
    MAX_JOB_BYTES,
    ConvertJob,
    DebianJob,
    ExportJob,
    Failure,
    ImportJob,
    Job,
    Limits,
    Message,
    Progress,
    PullJob,
    PushJob,
    Result,
    VerifyJob,
    decode_job,
    encode,
)
from casemate.image.leases import Lease
from casemate.image.observe import LayerWatch
from casemate.image.store import Store
from casemate.image.workspace import Workspace
from casemate.spec.errors import CasemateError

MAX_DESCRIPTORS = 1024
#: Metadata of squashfs and of archives on top of a layer's content.
FILE_SLACK_BYTES = 1 << 30
EXIT_TERM = 128 + signal.SIGTERM


class Output:
    """Lines to standard output, whole ones from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()

    def send(self, message: Message) -> None:
        data = memoryview(encode(message) + b"\n")
        with self._guard:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def progress(self, progress: Progress) -> None:
        self.send(progress)


def main(watch: Callable[[str], LayerWatch] | None = None) -> int:
    """*watch*: gives, for the state folder, who else looks at each layer that is converted."""
    output = Output(os.dup(1))
    os.dup2(2, 1)  # what a library may print must not look like a message
    try:
        job = decode_job(sys.stdin.buffer.read(MAX_JOB_BYTES + 1))
        bound_self(job)
        output.send(run(job, output, watch))
        return 0
    except CasemateError as error:
        output.send(Failure(error.to_problem()))
    except MemoryError:
        output.send(Failure(WorkerFailed("the job needs more memory than the worker may have").to_problem()))
    except OSError as error:
        output.send(Failure(from_os_error(error, "the image worker").to_problem()))
    return 1


def run(job: Job, output: Output, watch: Callable[[str], LayerWatch] | None = None) -> Result:
    """Do *job*; on failure its lease and what is half made go."""
    store = Store(job.state)
    store.create()
    work = Workspace(store, Lease(store, os.getppid()), job.limits, output.progress)
    work.watch = watch(job.state) if watch else None

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        # Threads may sit in a read for a minute: they end with the process, locks go with it, files are removed here.
        work.stop.set()
        store.sweep(os.getpid())
        work.lease.drop()
        os._exit(EXIT_TERM)

    signal.signal(signal.SIGTERM, terminate)
    try:
        return dispatch(work, job)
    except BaseException:
        work.stop.set()
        store.sweep(os.getpid())
        work.lease.drop()
        raise


def dispatch(work: Workspace, job: Job) -> Result:
    """The job's own module is imported only now: a push needs no decompressor, an import no TLS."""
    match job:
        case PullJob():
            from casemate.image.pull import pull  # noqa: PLC0415

            return pull(work, job)
        case PushJob():
            from casemate.image.push import push  # noqa: PLC0415

            return push(work, job)
        case ImportJob():
            from casemate.image.importing import import_archive  # noqa: PLC0415

            return import_archive(work, job)
        case ExportJob():
            from casemate.image.exporting import export_archive  # noqa: PLC0415

            return export_archive(work, job)
        case DebianJob():
            from casemate.image.debian import build_debian  # noqa: PLC0415

            return build_debian(work, job)
        case ConvertJob():
            from casemate.image.rework import convert_again  # noqa: PLC0415

            return convert_again(work, job)
        case VerifyJob():
            from casemate.image.rework import verify_store  # noqa: PLC0415

            return verify_store(work)


def bound_self(job: Job) -> None:
    """Lower this process's limits for good; limits that are lower already stay."""
    limits: Limits = job.limits
    bounds = {
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
        resource.RLIMIT_FSIZE: limits.max_layer_bytes + FILE_SLACK_BYTES,
    }
    # mmdebstrap needs newuidmap's privilege for its user namespace, and dpkg's children need memory of their own.
    builds = isinstance(job, DebianJob)
    if not builds:
        bounds[resource.RLIMIT_AS] = limits.memory_bytes
    ownlimits.bound_self(bounds, parent_ended=signal.SIGTERM, no_new_privs=not builds)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
