"""The child that judges: ``python -m casemate.node.trust.judge_child``; see :mod:`casemate.node.trust.judging`.

It serves casemated one job after the other until its input ends. Feeds, package lists, YAML and conditions are read
here and not in the daemon.
"""

from __future__ import annotations

import gc
import os
import resource
import sys

import msgspec

from casemate.host import ownlimits
from casemate.image.jobs import Failure
from casemate.node.trust.jobs import TrustChildFailed
from casemate.node.trust.judge_jobs import JOBS, MAX_MESSAGE_BYTES, Answer, Job, JudgeJob, ReadJob, TestJob
from casemate.node.trust.judging import Judge, read, test
from casemate.spec.errors import CasemateError

#: What is remembered of the feed (:data:`casemate.trust.feed.match.MAX_REMEMBERED`), layers and images.
MEMORY_BYTES = 4 << 30
MAX_DESCRIPTORS = 128
SIGTERM = 15


def bound_self() -> None:
    """Lower this process's limits for good. Its time is bounded by who asks."""
    limits = {resource.RLIMIT_NOFILE: MAX_DESCRIPTORS, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_AS: MEMORY_BYTES}
    ownlimits.bound_self(limits, parent_ended=SIGTERM)


def answer(judge: Judge, data: bytes) -> Answer:
    """The answer to one job; what goes wrong is an answer, too."""
    try:
        return _do(judge, JOBS.decode(data))
    except CasemateError as error:
        return Failure(error.to_problem())
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is no UTF-8, a day that is none
        return Failure(TrustChildFailed(f"the job cannot be read: {error}").to_problem())
    except (MemoryError, RecursionError, OSError) as error:
        return Failure(TrustChildFailed(f"{type(error).__name__}: {error}").to_problem())


def _do(judge: Judge, job: Job) -> Answer:
    match job:
        case JudgeJob():
            return judge.judge(job)
        case ReadJob():
            return read(job)
        case TestJob():
            return test(job)


def main() -> int:
    out = os.dup(1)
    os.dup2(2, 1)  # what a library may print must not look like a message
    bound_self()
    judge = Judge()
    # What is remembered lives long and holds no cycles: looking through it again and again takes a third of the time.
    gc.set_threshold(200_000, 20, 100)
    while len(head := sys.stdin.buffer.read(4)) == 4:
        size = int.from_bytes(head, "big")
        if size > MAX_MESSAGE_BYTES:
            return 1
        data = msgspec.json.encode(answer(judge, sys.stdin.buffer.read(size)))
        if len(data) > MAX_MESSAGE_BYTES:
            data = msgspec.json.encode(Failure(TrustChildFailed(f"an answer of {len(data)} bytes").to_problem()))
        view = memoryview(len(data).to_bytes(4, "big") + data)
        while view:
            view = view[os.write(out, view) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
