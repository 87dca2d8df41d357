"""What ``events`` says, and what ``update`` is asked, as values. Pure."""

from __future__ import annotations

import json

import msgspec

from casemate.isolation.level import InnerUsage
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import Resources
from casemate.spec.workload import Resources as Wanted

_UNIT = {"memory": 1, "cpu-quota": 1, "cpu-period": 1, "pids-limit": 1}
_DECODER = msgspec.json.Decoder(Resources)
_DEFAULT_PERIOD_US = 100_000


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


def wanted(document: str | bytes, words: list[str]) -> Wanted:
    """The limits of ``update``: the OCI's LinuxResources in *document*, then ``name=number`` *words*."""
    try:
        found = _DECODER.decode(document) if document else Resources()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleUnsupported(f"the resources: {error}") from error
    numbers: dict[str, int] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in _UNIT:
            raise BundleUnsupported(f"update of {name[:40]}: a machine that runs takes {', '.join(_UNIT)}")
        if not text.lstrip("-").isdigit() or len(text) > 20:
            raise BundleUnsupported(f"limit {name[:40]}={text[:40]!r} is no number")
        numbers[name] = int(text)
    memory = numbers.get("memory", found.memory.limit if found.memory is not None else None)
    quota = numbers.get("cpu-quota", found.cpu.quota if found.cpu is not None else None)
    period = numbers.get("cpu-period", (found.cpu.period if found.cpu is not None else None) or _DEFAULT_PERIOD_US)
    pids = numbers.get("pids-limit", found.pids.limit if found.pids is not None else None)
    return Wanted(
        memory_bytes=None if memory is None else max(memory, 0),
        cpu_millis=None if quota is None else max(quota, 0) * 1000 // max(period, 1),
        pids=pids,
    )
