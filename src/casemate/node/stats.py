"""Resource usage and processes, as hostd reads them from the kernel; percent of cpu as Docker computes it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from casemate.hostd.client import ask
from casemate.hostd.protocol import ContainerStats, ContainerTop, ContainerUsage, Processes, Stats
from casemate.node import lookup
from casemate.node.clock import rfc3339
from casemate.node.core import Core
from casemate.node.errors import ContainerNotRunning, TooMany
from casemate.node.rows import ContainerRow, select
from casemate.spec.api import StatsAnswer, StatsRow, TopAnswer

#: As many as one operation of hostd takes.
PAGE = 200
MAX_FOLLOWERS = 32
INTERVAL_S = 1.0
#: Between the two samples of an answer without a stream: long enough for a percentage that means something.
SAMPLE_S = 0.5
_RUNNING = "WHERE project=? AND status IN ('running', 'paused') ORDER BY created_at DESC"


async def choose(core: Core, project: str, references: tuple[str, ...]) -> list[ContainerRow]:
    """The containers that are asked for; without any, all that run."""

    def work(db: sqlite3.Connection) -> list[ContainerRow]:
        if references:
            return [lookup.container(db, reference, project) for reference in references]
        return select(db, ContainerRow, _RUNNING, project)

    return await core.db.read(work)


async def sample_twice(core: Core, rows: Sequence[ContainerRow]) -> StatsAnswer:
    """Usage now, with the percentage of the last half second."""
    before = await _sample(core, rows)
    if before[1]:
        await asyncio.sleep(SAMPLE_S)
    return _answer(core, rows, before, await _sample(core, rows))


async def follow(core: Core, rows: Sequence[ContainerRow], project: str | None) -> AsyncIterator[StatsAnswer]:
    """An answer each second, for ever; with *project*, of whatever runs in it at the time."""
    if core.stats_followers >= MAX_FOLLOWERS:
        raise TooMany(f"{MAX_FOLLOWERS} clients follow statistics already")
    core.stats_followers += 1
    try:
        before = await _sample(core, rows)
        while True:
            await asyncio.sleep(INTERVAL_S)
            if project is not None:
                rows = await choose(core, project, ())
            after = await _sample(core, rows)
            yield _answer(core, rows, before, after)
            before = after
    finally:
        core.stats_followers -= 1


async def _sample(core: Core, rows: Sequence[ContainerRow]) -> tuple[int, dict[str, ContainerUsage]]:
    found: dict[str, ContainerUsage] = {}
    at_ns = 0
    ids = [row.id for row in rows if row.status in ("running", "paused", "stopping")]
    for start in range(0, len(ids), PAGE):
        answer = await ask(core.hostd, ContainerStats(tuple(ids[start : start + PAGE])), Stats)
        at_ns = answer.at_ns
        found.update((usage.id, usage) for usage in answer.containers)
    return at_ns, found


def _answer(
    core: Core,
    rows: Sequence[ContainerRow],
    before: tuple[int, dict[str, ContainerUsage]],
    after: tuple[int, dict[str, ContainerUsage]],
) -> StatsAnswer:
    answers: list[StatsRow] = []
    for row in rows:
        usage = after[1].get(row.id)
        if usage is None:
            continue
        percent = cpu_percent(before[1].get(row.id), usage, after[0] - before[0])
        answers.append(
            StatsRow(
                row.id, row.name, percent, usage.memory_bytes, usage.memory_limit_bytes, usage.pids,
                usage.pids_limit, usage.read_bytes, usage.write_bytes, usage.rx_bytes, usage.tx_bytes,
            )
        )  # fmt: skip
    return StatsAnswer(rfc3339(core.clock()), tuple(answers))


def cpu_percent(before: ContainerUsage | None, after: ContainerUsage, elapsed_ns: int) -> float:
    """Percent of one cpu: 200 is two cpus in full, as Docker shows it."""
    if before is None or elapsed_ns <= 0 or after.cpu_ns < before.cpu_ns:
        return 0.0
    return round(100.0 * (after.cpu_ns - before.cpu_ns) / elapsed_ns, 2)


async def top(core: Core, reference: str, project: str) -> TopAnswer:
    """The processes of a running container, as ``ps -ef`` shows them."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    if row.status not in ("running", "paused", "stopping"):
        raise ContainerNotRunning(f"container {row.name} is {row.status}", status=row.status)
    answer = await ask(core.hostd, ContainerTop(row.id), Processes)
    processes = tuple(
        (str(p.uid), str(p.pid), str(p.ppid), _start(p.started_at), p.tty or "?", _time(p.cpu_ns), p.command)
        for p in answer.processes
    )
    return TopAnswer(("UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"), processes)


def _start(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M") if at else ""


def _time(cpu_ns: int) -> str:
    seconds = cpu_ns // 1_000_000_000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
