"""What ``events`` says, and what ``update`` is asked, as values. Pure."""

from __future__ import annotations

import json
import re

import msgspec

from casemate.isolation.level import InnerUsage
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import BlockIo, Cpu, MemoryLimit, Pids, Resources
from casemate.spec.workload import Resources as Wanted

#: runc's flags of `update`, by the part of the resources and its member.
_NUMBERS = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-period": ("cpu", "period"),
    "cpu-share": ("cpu", "shares"),
    "pids-limit": ("pids", "limit"),
    "blkio-weight": ("block_io", "weight"),
    # A guest has no swap: whatever the limit is, it holds.
    "memory-swap": ("swap", ""),
}
_SET = re.compile(r"[0-9][0-9,-]{0,400}\Z")
_SETS = {"cpuset-cpus": "cpus", "cpuset-mems": "mems"}
_DECODER = msgspec.json.Decoder(Resources)
_DEFAULT_PERIOD_US = 100_000
#: As of a bundle (:class:`~casemate.isolation.microvm.oci.BlockIo`).
_MOST_WEIGHT = 1000


def event(name: str, usage: InnerUsage) -> str:
    """One line of ``events``, in the form that runc's has (its libcontainer types are what tools read)."""
    data = {
        "cpu": {"usage": {"total": usage.cpu_ns}},
        "memory": {"usage": {"usage": usage.memory_bytes, "limit": usage.memory_limit_bytes}},
        "pids": {"current": usage.pids, "limit": usage.pids_limit},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"op": "Read", "value": usage.read_bytes},
                {"op": "Write", "value": usage.write_bytes},
            ]
        },
    }
    return json.dumps({"type": "stats", "id": name, "data": data}, separators=(",", ":"))


def resources(document: str | bytes, words: list[str]) -> Resources:
    """The limits of ``update``: the OCI's LinuxResources in *document*, then ``name=number`` *words*."""
    try:
        found = _DECODER.decode(document) if document else Resources()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleUnsupported(f"the resources: {error}") from error
    memory, cpu = found.memory or MemoryLimit(), found.cpu or Cpu()
    for word in words:
        name, _, text = word.partition("=")
        if name in _SETS:
            if not _SET.match(text):
                raise BundleUnsupported(f"limit {name}={text[:40]!r} is no list of numbers")
            cpu = msgspec.structs.replace(cpu, **{_SETS[name]: text})
            continue
        if name not in _NUMBERS:
            raise BundleUnsupported(
                f"update of {name[:40]}: a machine that runs takes {', '.join((*_NUMBERS, *_SETS))}"
            )
        if not text.lstrip("-").isdigit() or len(text) > 20:
            raise BundleUnsupported(f"limit {name[:40]}={text[:40]!r} is no number")
        part, key = _NUMBERS[name]
        match part:
            case "memory":
                memory = msgspec.structs.replace(memory, **{key: int(text)})
            case "cpu":
                cpu = msgspec.structs.replace(cpu, **{key: int(text)})
            case "block_io":
                block_io = msgspec.structs.replace(found.block_io or BlockIo(), weight=_weight(text))
                found = msgspec.structs.replace(found, block_io=block_io)
            case "swap":
                pass
            case _:
                found = msgspec.structs.replace(found, pids=Pids(int(text)))
    return msgspec.structs.replace(found, memory=memory, cpu=cpu)


def _weight(text: str) -> int:
    if not 0 <= int(text) <= _MOST_WEIGHT:
        raise BundleUnsupported(f"limit blkio-weight={text}; allowed are 0 to {_MOST_WEIGHT}")
    return int(text)


def in_guest(found: Resources) -> Wanted:
    """Those of *found* that the guest holds; a value that is not positive takes a limit away."""
    memory, cpu = found.memory or MemoryLimit(), found.cpu or Cpu()
    period = cpu.period or _DEFAULT_PERIOD_US
    return Wanted(
        memory_bytes=None if memory.limit is None else max(memory.limit, 0),
        memory_reservation_bytes=None if memory.reservation is None else max(memory.reservation, 0),
        cpu_millis=None if cpu.quota is None else max(cpu.quota, 0) * 1000 // max(period, 1),
        cpu_shares=cpu.shares or None,
        pids=None if found.pids is None else found.pids.limit,
    )
