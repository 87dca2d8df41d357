"""Guest kernels: fetched or taken from an uploaded package, taken apart here, handed to hostd as two files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from casemate.hostd.client import ask
from casemate.hostd.protocol import KernelAdopt, KernelList, KernelRemove, Kernels, KernelUse
from casemate.image import guestkernel
from casemate.node.core import Caller, Core
from casemate.node.operations import Operations, Running
from casemate.spec.api import Operation, Progress
from casemate.spec.api.kernels import KernelRow, KernelRows
from casemate.spec.errors import InvalidArgument, PermissionDenied

_ITEM = "guest kernel"
_ADOPT_TIMEOUT_S = 180.0


def check_caller(caller: Caller) -> None:
    """Every pod of every user runs on it: only root changes the host's guest kernel. :class:`PermissionDenied`."""
    if caller.uid != 0:
        raise PermissionDenied(
            f"only root changes guest kernels, and {caller.who} is not", remedy="sudo casemate system kernel install"
        )


async def listing(core: Core) -> KernelRows:
    """The kernels of this host."""
    return _rows(await ask(core.hostd, KernelList(), Kernels))


async def use(core: Core, version: str, caller: Caller) -> KernelRows:
    """Let *version* be the kernel of new machines."""
    check_caller(caller)
    return _rows(await ask(core.hostd, KernelUse(_checked(version)), Kernels))


async def remove(core: Core, version: str, caller: Caller) -> KernelRows:
    """Remove *version*."""
    check_caller(caller)
    return _rows(await ask(core.hostd, KernelRemove(_checked(version)), Kernels))


def _checked(version: str) -> str:
    """*version*, where a kernel can be called so: hostd's protocol takes nothing else, and would say no more."""
    if not guestkernel.VERSION.match(version):
        raise InvalidArgument(f"no guest kernel is called {version[:80]!r}", remedy="casemate system kernel ls")
    return version


async def install(core: Core, operations: Operations, package: Path | None, caller: Caller) -> Operation:
    """Install the kernel of *package* (removed at the end), or for None the one that apt knows."""

    async def work(running: Running) -> dict[str, object]:
        try:
            return await _install(core, package, running)
        finally:
            if package is not None:
                await asyncio.to_thread(package.unlink, missing_ok=True)

    return await operations.start("kernel.install", package.name if package else guestkernel.PACKAGE, caller, work)


async def _install(core: Core, package: Path | None, running: Running) -> dict[str, object]:
    agent = Path(core.settings.text("microvm.agent"))
    with _workspace(core) as folder:
        if package is None:
            running.tell(Progress(_ITEM, "downloading"))
            package = await guestkernel.fetch(folder)
        running.tell(Progress(_ITEM, "unpacking"))
        tree = folder / "tree"
        tree.mkdir()
        version, image, modules = await guestkernel.unpack(package, tree)
        made = await asyncio.to_thread(guestkernel.prepare, version, image, modules, agent, folder)
        running.tell(Progress(_ITEM, "installing"))
        with contextlib.ExitStack() as stack:
            numbers = [os.open(one, os.O_RDONLY | os.O_CLOEXEC) for one in (made.kernel, made.initramfs)]
            for number in numbers:
                stack.callback(os.close, number)
            operation = KernelAdopt(made.version, made.agent, made.lacks)
            await ask(core.hostd, operation, Kernels, descriptors=numbers, timeout_s=_ADOPT_TIMEOUT_S)
        running.tell(Progress(_ITEM, "done"))
        return {"version": made.version, "lacks": list(made.lacks)}


@contextlib.contextmanager
def _workspace(core: Core) -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kernel-", dir=core.settings.text("paths.state")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(found: Kernels) -> KernelRows:
    return KernelRows(tuple(KernelRow(one.version, one.size_bytes, one.chosen, one.lacks) for one in found.kernels))
