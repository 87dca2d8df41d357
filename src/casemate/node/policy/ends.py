"""Ends of connections as people write them: a container, a pod, PROJECT/NAME, an address, a DNS name."""

from __future__ import annotations

import ipaddress
import re
import sqlite3
from functools import lru_cache

from casemate.node import lookup
from casemate.node.core import Core
from casemate.node.policy.endpoints import read_workload
from casemate.node.policy.errors import WorkloadUnknown
from casemate.node.policy.state import Policy
from casemate.policy.addresses import Address
from casemate.policy.errors import PolicyInvalid
from casemate.policy.identity import Endpoint, Kind
from casemate.policy.ports import Protocol, parse_port
from casemate.spec.errors import NotFound

_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})+\.?\Z")


def outside(address: Address, names: frozenset[str] = frozenset()) -> Endpoint:
    """An address that is no pod's."""
    return Endpoint(str(address), addresses=(address,), kind=Kind.WORLD, dns=names)


@lru_cache(maxsize=65_536)
def unpacked(packed: bytes) -> Address:
    """The address in 4 or 16 bytes; kept, since the same ones come in every packet of a pod."""
    return ipaddress.IPv4Address(packed) if len(packed) == 4 else ipaddress.IPv6Address(packed)


def at_address(policy: Policy, address: Address) -> Endpoint:
    """Whose *address* is: the pod's workload, or an outside end."""
    planner = policy.planner
    found = planner.owner(address) if planner is not None else None
    if found is not None:
        return found
    one = policy.workloads.at(address)
    return outside(address) if one is None else policy.labelled(one)


def unknown(text: str, project: str) -> WorkloadUnknown:
    """*text* names nothing there, or nothing that is to be told of."""
    return WorkloadUnknown(f"{text[:140]!r} is neither a container nor a pod of project {project}")


async def workload_name(core: Core, text: str, project: str, *, historic: bool = False) -> str:
    """The stable name of the workload that *text* names; *historic*: also one that only walls' history knows.

    Raises :class:`WorkloadUnknown`.
    """
    policy = core.policy
    await policy.load()
    if text in policy.workloads.names:
        return text
    if f"{project}/{text}" in policy.workloads.names:
        return f"{project}/{text}"
    if historic:
        for name in (text, f"{project}/{text}"):
            if name in core.walls.bound:
                return name
    owner, slash, rest = text.partition("/")

    def work(db: sqlite3.Connection) -> str:
        for name, home in (((rest, owner),) if slash else ()) + ((text, project),):
            try:
                return lookup.container(db, name, home).pod
            except NotFound:
                pass
            try:
                return lookup.pod(db, name.removeprefix("pod/"), home).id
            except NotFound:
                pass
        raise unknown(text, project)

    pod = await core.db.read(work)
    known = policy.workloads.get(pod)
    if known is None:
        known = await core.db.read(lambda db: read_workload(db, pod))
        if known is None:
            raise WorkloadUnknown(f"{text[:140]!r} has no network of its own, so no policy is about it")
        policy.workloads.note(known)
    return known.name


async def end(core: Core, text: str, project: str) -> Endpoint:
    """The end that *text* names; a workload may not have run yet. Raises :class:`WorkloadUnknown`."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        await core.policy.load()
        return at_address(core.policy, address)
    try:
        name = await workload_name(core, text, project)
    except WorkloadUnknown:
        if _DOMAIN.match(text):
            return Endpoint(text, kind=Kind.WORLD, dns=frozenset({text.lower().rstrip(".")}))
        raise
    found = core.policy.workloads.named(name)
    assert found is not None
    return core.policy.labelled(found)


def port(text: str, destination: Endpoint) -> tuple[Protocol, int]:
    """``tcp/5432``, or ``tcp/NAME`` with a name that *destination* has. Raises :class:`PolicyInvalid`."""
    kind, slash, rest = text.partition("/")
    if slash and rest and not rest.isdigit():
        for named in destination.ports:
            if named.name == rest and named.protocol.name.lower() == kind:
                return named.protocol, named.number
        raise PolicyInvalid(f"{destination.name} has no port that it calls {rest[:40]!r} of {kind[:10]!r}")
    return parse_port(text)
