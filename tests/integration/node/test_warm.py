"""The child that is kept: it serves, is replaced when it dies or hangs, and ends when it is idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import msgspec
import pytest

from casemate.image.errors import WorkerFailed
from casemate.image.jobs import Failure
from casemate.node.evidence import ask
from casemate.node.evidence_jobs import Checked, CheckJob
from casemate.node.warm import MAX_MESSAGE_BYTES, Warm, WarmSeveral
from casemate.spec.errors import RemoteError, TimedOut

CHILD = "casemate.node.evidence_child"
DIGEST = "sha256:" + "ab" * 32


def job(state: Path, digest: str = DIGEST) -> CheckJob:
    return CheckJob(state=str(state), reference="registry.example/a", subjects=(digest,), now_s=0.0)


def pid_of(child: Warm) -> int:
    process = child._process
    assert process is not None
    return process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):  # noqa: ASYNC110 - nothing tells of a process that is not ours any more
            await asyncio.sleep(0.02)


def test_it_serves_and_outlives_jobs_that_fail(tmp_path: Path) -> None:
    async def work() -> None:
        child = Warm(CHILD, MAX_MESSAGE_BYTES)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask(child, job(tmp_path), 60))
        first = pid_of(child)
        with pytest.raises(RemoteError):
            await ask(child, job(tmp_path, "sha256:x"), 60)
        for junk in (b"", b"{", b"[" * 100_000, msgspec.json.encode({"type": "check"})):
            answer = msgspec.json.decode(await child.ask(junk, 60), type=Failure)
            assert answer.problem["code"] == "image.worker_failed"
        assert isinstance(await ask(child, job(tmp_path), 60), Checked)
        assert pid_of(child) == first
        await child.close()
        assert not alive(first)

    asyncio.run(work())


def test_one_that_dies_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        child = Warm(CHILD, MAX_MESSAGE_BYTES)
        await ask(child, job(tmp_path), 60)
        first = pid_of(child)
        os.kill(first, signal.SIGKILL)
        with contextlib.suppress(WorkerFailed):  # its death may be known already, or be found out by this
            await ask(child, job(tmp_path), 60)
        await ask(child, job(tmp_path), 60)
        assert pid_of(child) != first
        await child.close()

    asyncio.run(work())


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    async def work() -> None:
        child = Warm(CHILD, MAX_MESSAGE_BYTES)
        await ask(child, job(tmp_path), 60)
        first = pid_of(child)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(TimedOut):
            await ask(child, job(tmp_path), 0.2)
        await gone(first)
        await ask(child, job(tmp_path), 60)
        await child.close()

    asyncio.run(work())


def test_one_that_is_idle_ends(tmp_path: Path) -> None:
    async def work() -> None:
        child = Warm(CHILD, MAX_MESSAGE_BYTES, idle_s=0.05)
        await ask(child, job(tmp_path), 60)
        first = pid_of(child)
        await gone(first)
        await ask(child, job(tmp_path), 60)
        await child.close()

    asyncio.run(work())


def test_one_that_is_slow_holds_up_nobody_else(tmp_path: Path) -> None:
    async def work() -> None:
        children = WarmSeveral(CHILD, MAX_MESSAGE_BYTES, 2)
        await ask(children, job(tmp_path), 60)
        slow, other = children._children
        os.kill(pid_of(slow), signal.SIGSTOP)
        ended: list[str] = []

        async def hang() -> None:
            try:
                await children.ask(msgspec.json.encode(job(tmp_path)), 3)
            except TimedOut:
                ended.append("hung")

        async with asyncio.TaskGroup() as group:
            group.create_task(hang())
            await asyncio.sleep(0)
            for _ in range(3):
                assert isinstance(await ask(children, job(tmp_path), 60), Checked)
            assert pid_of(other)
        assert ended == ["hung"]
        await children.close()

    asyncio.run(work())


def test_what_is_no_answer_and_what_is_too_long(tmp_path: Path) -> None:
    async def work() -> None:
        for module, bound in (("casemate.cli.main", MAX_MESSAGE_BYTES), (CHILD, 8)):
            child = Warm(module, bound)
            with pytest.raises(WorkerFailed):
                await child.ask(msgspec.json.encode(job(tmp_path)), 60)
            await child.close()

    asyncio.run(work())
