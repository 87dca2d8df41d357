"""Import and export of archives through the worker."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from casemate.image import jobs
from casemate.image.client import run_job
from casemate.node import images, imagestore
from casemate.node.core import Caller, Core
from casemate.node.operations import Operations
from casemate.spec.api import Operation
from casemate.spec.errors import CasemateError, InvalidArgument
from casemate.spec.reference import parse_reference

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ImportWanted:
    """What an import was told about the archive; command and environment are for a plain root file system."""

    tag: str = ""
    format: str = "auto"
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


def check_import(wanted: ImportWanted) -> None:
    """Refuse before the body is read; raises :class:`InvalidArgument`."""
    if wanted.tag:
        parse_reference(wanted.tag)
    if wanted.format == "rootfs" and not wanted.tag:
        raise InvalidArgument("a root file system needs a name for its image", remedy="Give tag=NAME[:TAG].")


async def import_(core: Core, operations: Operations, wanted: ImportWanted, path: Path, caller: Caller) -> Operation:
    """Read the archive that was uploaded to *path*, which is removed at the end."""
    name = str(parse_reference(wanted.tag)) if wanted.tag else ""
    job = jobs.ImportJob(
        state=core.settings.text("paths.state"),
        source=str(path),
        rootfs=wanted.format == "rootfs",
        name=name,
        change=jobs.ConfigChange(cmd=wanted.command, entrypoint=wanted.entrypoint, env=wanted.env),
        platform=images.parse_platform(None),
        limits=images.limits(core),
        epoch=int(core.clock()),
    )
    return await images.import_(core, operations, job, (name,) if name else (), caller)


class Export:
    """An archive as it is written by the worker; use as a context, read until empty."""

    def __init__(self, job: jobs.ExportJob, read_end: int, write_end: int) -> None:
        self._job = job
        self._read_end = read_end
        self._write_end = write_end
        self._task: asyncio.Task[jobs.Result] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._transport: asyncio.BaseTransport | None = None
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Export:
        await self._group.__aenter__()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        pipe = os.fdopen(self._read_end, "rb", buffering=0)
        self._transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._reader = reader
        self._task = self._group.create_task(self._write())
        return self

    async def _write(self) -> jobs.Result:
        try:
            return await run_job(self._job, descriptors=(self._write_end,))
        finally:
            os.close(self._write_end)

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises what the worker failed with."""
        assert self._reader is not None
        assert self._task is not None
        data = await self._reader.read(CHUNK_BYTES)
        if not data:
            await self._task
        return data

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._task is not None and not self._task.done():
            self._task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except ExceptionGroup as group:
            raise group.exceptions[0] from group


async def open_export(core: Core, references: tuple[str, ...], format_: str) -> Export:
    """An export of the images that *references* name; raises before anything is streamed when one is not there."""
    wanted: dict[str, list[str]] = {}
    for text in references:
        row = await core.db.read(lambda db, t=text: imagestore.find(db, t))  # type: ignore[misc]
        names = wanted.setdefault(row.manifest_digest, [])
        try:
            reference = parse_reference(text)
        except CasemateError:
            continue
        stored = await core.db.read(lambda db, r=row: imagestore.names_of(db, r.manifest_digest))  # type: ignore[misc]
        if str(reference) in stored:
            names.append(str(reference))
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    job = jobs.ExportJob(
        state=core.settings.text("paths.state"),
        images=tuple((digest, tuple(names)) for digest, names in wanted.items()),
        target=f"fd:{write_end}",
        kind=format_,
        limits=images.limits(core),
    )
    return Export(job, read_end, write_end)
