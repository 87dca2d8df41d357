"""Files in and out of a container: tar streams through pipes that hostd's confined child reads or writes."""

from __future__ import annotations

import io
import posixpath
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from casemate.hostd.client import ask
from casemate.hostd.protocol import AnyOperation, ContainerArchive, ContainerDiff, ContainerExtract, Done
from casemate.node import audit, entering, lookup
from casemate.node.core import Caller, Core
from casemate.node.errors import ContainerState
from casemate.node.piped import Piped, feed
from casemate.node.rows import ContainerRow
from casemate.spec.api import Change, ChangesAnswer, PathStat
from casemate.spec.errors import Corrupt, InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    import tarfile

#: A copy of a large tree takes its time; one that hangs ends all the same.
TIMEOUT_S = 6 * 3600.0
MAX_CHANGES = 200_000
MAX_CHANGES_BYTES = 64 << 20


def _output(core: Core, operation: AnyOperation) -> Piped:
    """What hostd writes for *operation*."""

    async def write(write_end: int) -> Done:
        return await ask(core.hostd, operation, Done, descriptors=(write_end,), timeout_s=TIMEOUT_S)

    return Piped(write)


async def _made(core: Core, reference: str, project: str, caller: Caller) -> ContainerRow:
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    await entering.enter(core, row, caller)
    if row.status == "removing":
        raise ContainerState(f"container {row.name} is being removed", status=row.status)
    if not row.made:
        raise ContainerState(
            f"container {row.name} is {row.status}: it has no files yet",
            remedy=f"Start it once: `casemate start {row.name}`.", status=row.status,
        )  # fmt: skip
    return row


def check_path(path: str) -> str:
    """*path* inside a container, made absolute; raises :class:`InvalidArgument`."""
    if not path or "\0" in path or len(path.encode("utf-8", "replace")) > 4096:
        raise InvalidArgument("path has 1 to 4096 bytes and no zero byte")
    # The end matters ("dir/." is the content of dir): hostd resolves the rest beneath the root file system.
    return path if path.startswith("/") else "/" + path


async def archive(core: Core, reference: str, project: str, caller: Caller, path: str) -> Piped:
    """A tar of *path*."""
    row = await _made(core, reference, project, caller)
    return _output(core, ContainerArchive(row.id, check_path(path)))


async def export(core: Core, reference: str, project: str, caller: Caller) -> Piped:
    """A tar of the whole root file system."""
    row = await _made(core, reference, project, caller)
    return _output(core, ContainerArchive(row.id, "/", whole=True))


async def first_member(output: Piped, path: str) -> PathStat:
    """What stands at *path*: the first entry of its archive, which is still read whole afterwards.

    Bounded by what the entry's extended headers may take.
    """
    import tarfile  # noqa: PLC0415 - for copies alone

    data = b""
    while len(data) < 1 << 20:
        piece = await output.read()
        data += piece
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
                member = tar.next()
        except (tarfile.ReadError, EOFError):
            member = None
        if member is not None:
            output.keep(data)
            return PathStat(
                name=posixpath.basename(path.rstrip("/")) or "/",
                size=member.size,
                mode=_mode(member),
                mtime=float(member.mtime),
                link_target=member.linkname if member.issym() else "",
                is_dir=member.isdir(),
            )
        if not piece:
            break
    raise Corrupt("the archive of the path holds no entry")


def _mode(member: tarfile.TarInfo) -> int:
    """st_mode of a tar member: type and permission bits."""
    import tarfile  # noqa: PLC0415 - for copies alone

    kinds = {
        tarfile.DIRTYPE: 0o040000, tarfile.SYMTYPE: 0o120000, tarfile.CHRTYPE: 0o020000, tarfile.BLKTYPE: 0o060000,
        tarfile.FIFOTYPE: 0o010000,
    }  # fmt: skip
    return kinds.get(member.type, 0o100000) | (member.mode & 0o7777)


async def extract(
    core: Core, reference: str, project: str, caller: Caller, *, path: str, body: AsyncIterable[bytes]
) -> None:
    """Unpack the tar *body* below *path*; hostd's confined child reads it from a pipe."""
    row = await _made(core, reference, project, caller)
    operation = ContainerExtract(row.id, check_path(path))
    at = core.clock()
    await core.db.write(
        lambda db: audit.append(db, at, caller.who, "container.extract", row.id, name=row.name, path=path[:500])
    )

    async def read(read_end: int) -> Done:
        return await ask(core.hostd, operation, Done, descriptors=(read_end,), timeout_s=TIMEOUT_S)

    await feed(body, read)


async def changes(core: Core, reference: str, project: str, caller: Caller) -> ChangesAnswer:
    """What the container changed in its file system."""
    row = await _made(core, reference, project, caller)
    data = bytearray()
    async with _output(core, ContainerDiff(row.id)) as output:
        while piece := await output.read():
            data += piece
            if len(data) > MAX_CHANGES_BYTES:
                raise LimitExceeded(f"the list of changes is longer than {MAX_CHANGES_BYTES} bytes")
    found: list[Change] = []
    for line in bytes(data).split(b"\0")[: MAX_CHANGES + 1]:
        kind, _, path = line.decode("utf-8", "replace").partition(" ")
        if kind in ("A", "C", "D"):
            found.append(Change(kind, path))  # type: ignore[arg-type]  # one of the three
    if len(found) > MAX_CHANGES:
        raise LimitExceeded(f"more than {MAX_CHANGES} changes")
    return ChangesAnswer(tuple(sorted(found, key=lambda change: change.path)))
