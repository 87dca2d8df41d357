"""Bodies that are kept in a file until the node has taken them over: archives, packages, feeds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from casemate.api.errors import BodyTooLarge
from casemate.api.routing import Call
from casemate.spec.errors import DiskFull


@contextlib.asynccontextmanager
async def uploaded(call: Call, limit: int, setting: str = "") -> AsyncGenerator[Path]:
    """The body in a file below ``uploads``; removed when it does not come whole, or the block fails.

    At most *limit* bytes, which is the value of *setting* if that is given. Raises :class:`BodyTooLarge` and
    :class:`DiskFull`.
    """
    assert call.request is not None
    path = call.core.images.temporary("uploads")
    try:
        try:
            await _spool(call.request.stream(), path, limit, setting)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"{path.parent}: no space for the upload") from error
            raise
        yield path
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise


async def _spool(stream: AsyncIterator[bytes], path: Path, limit: int, setting: str) -> None:
    size = 0
    with await asyncio.to_thread(path.open, "xb") as file:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                bound = f"{setting} ({limit})" if setting else f"{limit} bytes"
                raise BodyTooLarge(f"the upload is longer than {bound}", limit=limit)
            if chunk:
                await asyncio.to_thread(file.write, chunk)


@contextlib.asynccontextmanager
async def uploaded_archive(call: Call) -> AsyncGenerator[Path]:
    """:func:`uploaded`, of what may be as long as a layer."""
    setting = "image.max_layer_bytes"
    async with uploaded(call, call.core.settings.number(setting), setting) as path:
        yield path
