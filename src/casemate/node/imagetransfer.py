"""Import and export of archives through the worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from casemate.image import jobs
from casemate.node import images, imagestore
from casemate.node.core import Caller, Core
from casemate.node.imagejobs import run_job
from casemate.node.operations import Operations
from casemate.node.piped import Piped
from casemate.node.platforms import parse_platform
from casemate.spec.api import Operation
from casemate.spec.errors import CasemateError, InvalidArgument
from casemate.spec.reference import parse_reference


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
        maybe_rootfs=wanted.format == "auto" and bool(name),
        name=name,
        change=jobs.ConfigChange(cmd=wanted.command, entrypoint=wanted.entrypoint, env=wanted.env),
        platform=parse_platform(None),
        limits=images.limits(core),
        epoch=int(core.clock()),
    )
    return await images.import_(core, operations, job, (name,) if name else (), caller)


async def open_export(core: Core, references: tuple[str, ...], format_: str) -> Piped:
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

    async def write(write_end: int) -> jobs.Result:
        job = jobs.ExportJob(
            state=core.settings.text("paths.state"),
            images=tuple((digest, tuple(names)) for digest, names in wanted.items()),
            target=f"fd:{write_end}",
            kind=format_,
            limits=images.limits(core),
        )
        return await run_job(job, descriptors=(write_end,))

    return Piped(write)
