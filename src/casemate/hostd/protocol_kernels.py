"""The operations on guest kernels, and their answer; a part of :mod:`casemate.hostd.protocol`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.hostd.protocol_base import Answer, Operation
from casemate.spec.workload import Hex, Value

Version = Annotated[str, Meta(pattern=r"\A[0-9][A-Za-z0-9.+~_-]{0,63}\Z")]
Module = Annotated[str, Meta(pattern=r"\A[a-z0-9_]{1,32}\Z")]


class KernelAdopt(Operation, frozen=True, tag="kernel.adopt"):
    """Takes two descriptors, kernel and initramfs, over as *version*. Answers :class:`Kernels`."""

    version: Version
    agent: Hex  #: sha256 of the agent in the initramfs
    lacks: Annotated[tuple[Module, ...], Meta(max_length=32)] = ()


class KernelList(Operation, frozen=True, tag="kernel.list"):
    """Answers :class:`Kernels`."""


class KernelUse(Operation, frozen=True, tag="kernel.use"):
    """Machines that are made from now on have *version*. Answers :class:`Kernels`."""

    version: Version


class KernelRemove(Operation, frozen=True, tag="kernel.remove"):
    """Answers :class:`Kernels`; machines that run go on."""

    version: Version


class Kernel(Value, frozen=True):
    version: str
    size_bytes: int
    chosen: bool
    lacks: tuple[str, ...] = ()


class Kernels(Answer, frozen=True, tag="kernels"):
    kernels: tuple[Kernel, ...]


KernelOperation = KernelAdopt | KernelList | KernelUse | KernelRemove
