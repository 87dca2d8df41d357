"""The trust child: ``python -m casemate.node.trust.worker`` reads one job, does it, and ends.

It runs as casemated's user in a session of its own and bounds itself before it reads anything. TERM, or the death of
its parent, ends it; what it was importing is then as it was before.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

from casemate.host import ownlimits
from casemate.node.trust.jobs import (
    FEED_FILE,
    MAX_JOB_BYTES,
    Answer,
    Failure,
    FeedsJob,
    ImportJob,
    Job,
    Message,
    RemoveJob,
    ScanJob,
    Told,
    TrustChildFailed,
    UpdateJob,
    answer,
    decode_job,
    encode,
)
from casemate.spec.errors import CasemateError, DiskFull

#: The largest single file of a feed (512 MiB of JSON) as objects, and SQLite's sorter.
MEMORY_BYTES = 6 << 30
MAX_DESCRIPTORS = 256
CPU_S = 3600
#: The feed with all that is to be had in it is below 1 GiB.
FILE_BYTES = 16 << 30
_FULL = (28, 122)

Tell = Callable[[Told], None]


def main() -> int:
    descriptor = os.dup(1)
    os.dup2(2, 1)  # what a library may print must not look like a message

    def send(message: Message) -> None:
        data = memoryview(encode(message) + b"\n")
        while data:
            data = data[os.write(descriptor, data) :]

    try:
        bound_self()
        send(run(decode_job(sys.stdin.buffer.read(MAX_JOB_BYTES + 1)), send))
        return 0
    except CasemateError as error:
        send(Failure(error.to_problem()))
    except MemoryError:
        send(Failure(TrustChildFailed("the job needs more memory than the trust child may have").to_problem()))
    except OSError as error:
        problem = DiskFull(str(error)) if error.errno in _FULL else TrustChildFailed(f"{type(error).__name__}: {error}")
        send(Failure(problem.to_problem()))
    return 1


def bound_self() -> None:
    """Lower this process's limits for good."""
    ownlimits.bound_self(
        {
            resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
            resource.RLIMIT_FSIZE: FILE_BYTES,
            resource.RLIMIT_AS: MEMORY_BYTES,
            resource.RLIMIT_CPU: CPU_S,
        },
        parent_ended=signal.SIGTERM,
    )
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if os.getppid() == 1:
        raise TrustChildFailed("casemated is gone")


def run(job: Job, tell: Tell) -> Answer:
    """Do *job*; its own modules are imported only now."""
    feed = Path(job.state) / FEED_FILE
    match job:
        case ScanJob():
            from casemate.node.trust.scanning import scan  # noqa: PLC0415

            return scan(job)
        case ImportJob():
            from casemate.trust.feed.apply import import_feed  # noqa: PLC0415

            tell(Told(job.name, "importing"))
            return answer(
                import_feed(
                    feed, job.kind, Path(job.origin), name=job.name, today=date.fromisoformat(job.today),
                    made=job.made, digest=job.digest,
                )
            )  # fmt: skip
        case UpdateJob():
            from casemate.node.trust.mirror import update  # noqa: PLC0415

            return answer(update(job, feed, tell))
        case RemoveJob():
            from casemate.trust.feed.apply import remove_source  # noqa: PLC0415

            remove_source(feed, job.name)
            return Answer()
        case FeedsJob():
            from casemate.node.trust.scanning import list_feeds  # noqa: PLC0415

            return answer(list_feeds(job))


if __name__ == "__main__":
    sys.exit(main())
