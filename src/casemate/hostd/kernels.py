"""The operations on guest kernels."""

from __future__ import annotations

from pathlib import Path

from casemate.host.netns import in_own_thread
from casemate.hostd import microvm
from casemate.hostd.context import Context
from casemate.hostd.errors import ProtocolViolated
from casemate.hostd.protocol_kernels import Kernel, KernelAdopt, KernelOperation, KernelRemove, Kernels, KernelUse
from casemate.isolation.microvm import kernel
from casemate.isolation.microvm.errors import KernelMissing

#: Two files of at most 128 MiB, written and made durable.
_COPY_TIMEOUT_S = 120.0


async def handle(context: Context, operation: KernelOperation, fds: list[int]) -> Kernels:
    """The kernels after *operation*; the level comes and goes with them."""
    folder = microvm.state_folder(context)
    match operation:
        case KernelAdopt():
            if len(fds) != 2:
                raise ProtocolViolated(f"{len(fds)} descriptors; this operation takes kernel and initramfs")
            image, initramfs = fds
            await in_own_thread(
                lambda: kernel.adopt(
                    folder, operation.version, image, initramfs, lacks=operation.lacks, agent=operation.agent
                ),
                timeout_s=_COPY_TIMEOUT_S,
            )
        case KernelUse():
            await in_own_thread(lambda: kernel.use(folder, operation.version), timeout_s=_COPY_TIMEOUT_S)
        case KernelRemove():
            kernel.remove(folder, operation.version)
        case _:
            pass
    if context.machines is not None:
        await microvm.choose_accelerator(context, context.machines)
        microvm.refresh(context, context.machines)
    return _listing(folder)


def _listing(folder: Path) -> Kernels:
    try:
        chosen = kernel.chosen(folder).version
    except KernelMissing:
        chosen = ""
    found = []
    for version in kernel.installed(folder)[:64]:
        size = sum(one.stat().st_size for one in (folder / version).iterdir())
        found.append(Kernel(version, size, version == chosen, kernel.lacks_of(folder, version)))
    return Kernels(tuple(found))
