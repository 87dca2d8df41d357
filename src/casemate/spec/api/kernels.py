"""Guest kernels: what micro-VMs run."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.spec.workload import Value

KernelVersion = Annotated[str, Meta(min_length=1, max_length=64)]


class KernelRow(Value, frozen=True):
    """*chosen*: machines that are made from now on have it. *lacks*: modules without which a feature is missing."""

    version: str
    size_bytes: int
    chosen: bool
    lacks: tuple[str, ...] = ()


class KernelRows(Value, frozen=True):
    kernels: tuple[KernelRow, ...]


class KernelChoice(Value, frozen=True):
    version: KernelVersion
