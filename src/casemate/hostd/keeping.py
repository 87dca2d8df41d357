"""Kept ports: the table that leads their connections to the relay, and the relay's connections to the pods.

What is kept stands in the pods' records. The table is there while a pod keeps a port; the relay is a process without
privilege (:mod:`casemate.hostd.relaying`), which hostd gives a listener, and for each accepted connection one to the
pod (:mod:`casemate.network.relay`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from casemate.host import durable, nft, nft_netlink, policyroutes
from casemate.host.nft_netlink import DELETE_ELEMENTS, INET, NEW_ELEMENTS, Batch, NftSocket
from casemate.host.nft_rules import OwnRules
from casemate.host.rtnetlink import NetlinkFailed
from casemate.hostd.protocol import AnyEvent, Finding
from casemate.hostd.protocol_firewall import FirewallRepaired
from casemate.hostd.protocol_keeping import GIVEN_LISTENER, PodProbe, Probed
from casemate.hostd.relaying import RelayProcess
from casemate.hostd.state import State
from casemate.network import flowlog, relay
from casemate.network.firewall import kept
from casemate.network.plan import check_prefix
from casemate.spec.errors import LimitExceeded
from casemate.spec.settings import Settings
from casemate.spec.workload import PodSpec

log = logging.getLogger("casemate.hostd")

_PERIOD_S = 0.5
#: A port's number.
_MAX_RECORD_BYTES = 8
#: Before the main table (32,766) and whatever else people add; after the table of the host's own addresses (0).
_PRIORITY, _MASK = 90, 0xFFFFFFFE


@dataclass(slots=True)
class Keeping:
    """*library* gives libnftables; *followed* is told of our own changes; *emit* sends an event to the peer.

    *record* is a file below the run folder: where the relay listens, so that a later hostd makes the same rules;
    *is_heard*: whether casemated is connected.
    """

    settings: Settings
    state: State
    library: Callable[[], nft.Nft]
    followed: nft.Followed
    relay: RelayProcess
    emit: Callable[[AnyEvent], None]
    record: Path
    is_heard: Callable[[], bool]
    counted: Counter[str] = field(default_factory=Counter)
    #: The listener's port; 0 before a relay asked for one.
    port: int = 0
    _kept: dict[tuple[str, int], str] = field(default_factory=dict)
    _read: bool = False
    _laid: bool = False
    _taken_over: bool = False
    #: Lines for a peer that is not there yet.
    _untold: list[str] = field(default_factory=list)
    _socket: NftSocket | None = None
    _rules: OwnRules = field(init=False)

    def __post_init__(self) -> None:
        self._rules = OwnRules(self.name, INET)
        self.relay.on_request, self.relay.on_reached = self._connect, self._reached

    @property
    def _table(self) -> str:
        return self.settings.text("network.table")

    @property
    def name(self) -> str:
        return kept.table_name(self._table)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def put(self, spec: PodSpec) -> None:
        """The pod's kept ports from now on; before its link comes up. Raises NftFailed, NetlinkFailed."""
        if not spec.network.kept:
            return
        self._read_records()
        for one in spec.network.kept:
            self._kept[spec.network.address, one.port] = spec.id
        self.ensure()
        self._reach()

    def take(self, spec: PodSpec) -> None:
        """The pod goes, and its address may be another's soon."""
        if not spec.network.kept:
            return
        self._read_records()
        address = spec.network.address
        for one in spec.network.kept:
            self._kept.pop((address, one.port), None)
        if not self._kept:
            self._remove()
            return
        packed = IPv4Address(address).packed
        elements = [("kept", kept.kept_element(packed, one.port)) for one in spec.network.kept]
        for name, element in (*elements, ("itself", kept.itself_element(packed))):
            batch = Batch(self.name)
            batch.elements(DELETE_ELEMENTS, name, [element])
            # Somebody's flush took it: it is made again without.
            with contextlib.suppress(nft.NftFailed):
                self._commit(batch)

    def _read_records(self) -> None:
        if self._read:
            return
        self._read = True
        for pod in self.state.pods.values():
            network = pod.record.spec.network
            for one in network.kept:
                self._kept[network.address, one.port] = pod.id

    # --- the table ------------------------------------------------------------------------------------------------

    def lost(self) -> list[str]:
        """What of the rules is not as it was made, in words. Those of an earlier hostd that left no record of where the
        relay listens are taken as they are."""
        if not self._rules.is_known and not self.port and self._is_complete():
            self._rules.adopt()
            return []
        return self._rules.lost() if self._rules.is_known else ["not made by this hostd"]

    def _is_complete(self) -> bool:
        return nft_netlink.rules(self.name, INET) == kept.RULES

    def ensure(self) -> None:
        """Make the table and the routing rule, or what of them is missing; every element that should be is there."""
        self._read_records()
        if not self._kept:
            return
        self._take_over()
        mark = kept.marks(self._table)
        if policyroutes.ensure_local(mark.kept, _MASK, kept.routing_table(self._table), _PRIORITY):
            log.info("made the routing rule of kept connections")
        lost = self.lost()
        if lost or (self.port and not self._laid):
            was_known = self._rules.is_known
            with self.followed.own_change():
                self._rules.make(self._lay)
            self._laid = True
            line = self._rules.describe(lost if was_known else [])
            log.info("%s", line)
            if lost and was_known:
                self.emit(FirewallRepaired((line,)))
        batch = Batch(self.name)
        batch.flush_set("kept")
        batch.flush_set("itself")
        batch.elements(NEW_ELEMENTS, "kept", [kept.kept_element(IPv4Address(a).packed, p) for a, p in self._kept])
        batch.elements(NEW_ELEMENTS, "itself", [kept.itself_element(IPv4Address(a).packed) for a in self._addresses()])
        self._commit(batch)

    def _take_over(self) -> None:
        """Make the rules of an earlier hostd again as it made them, once; what was otherwise meanwhile is told."""
        if self._taken_over:
            return
        self._taken_over = True
        self._read_records()
        earlier = self._recorded() if self._kept else None
        if earlier is None:
            return
        self.port = earlier
        with self.followed.own_change():
            changed = self._rules.remake(self._lay)
        self._laid = True
        if changed:
            line = self._rules.describe(changed)
            line += ", while casemate-hostd was away or another version"
            log.info("%s", line)
            self._untold.append(line)

    def _recorded(self) -> int | None:
        """The listener's port when the rules were made last; None where that is not known."""
        try:
            text = durable.read_bounded(self.record, _MAX_RECORD_BYTES)
        except (FileNotFoundError, LimitExceeded):
            return None
        return int(text) if text.isdigit() and int(text) < 1 << 16 else None

    def _lay(self) -> None:
        durable.write_atomic(self.record, b"%d" % self.port, sync=False)
        prefix, group = check_prefix(self.settings.text("network.link_prefix")), flowlog.hello_group(self._table)
        self.library().run(kept.script(self._table, prefix, self.port, group, flowlog.HELLO_COPY_BYTES))

    def _addresses(self) -> Iterable[str]:
        return {address for address, _ in self._kept}

    def _commit(self, batch: Batch) -> None:
        if self._socket is None:
            self._socket = NftSocket()
        with self.followed.own_change():
            self._socket.commit(batch)

    def _remove(self) -> None:
        """Nothing is kept: no packet looks for it, and the relay is let go."""
        self._laid = False
        self.record.unlink(missing_ok=True)
        self.relay.hang_up()
        self._rules.forget()
        with self.followed.own_change():
            nft_netlink.delete_table("inet", self.name)
        mark = kept.marks(self._table)
        policyroutes.remove_local(mark.kept, _MASK, kept.routing_table(self._table), _PRIORITY)

    async def keep(self) -> None:
        """Make good what somebody took away; never returns."""
        self._read_records()
        if not self._kept and nft_netlink.rules(self.name, nft_netlink.INET):
            # A pod's removal was interrupted.
            self._remove()
        while True:
            if self._kept:
                try:
                    self._take_over()
                    if self._untold and self.is_heard():
                        self.emit(FirewallRepaired(tuple(self._untold)))
                        self._untold.clear()
                    self._reach()
                    mark = kept.marks(self._table)
                    made = policyroutes.ensure_local(mark.kept, _MASK, kept.routing_table(self._table), _PRIORITY)
                    if made or self.lost():
                        self.ensure()
                except (nft.NftFailed, nft.NftMissing, NetlinkFailed, OSError) as error:
                    log.error("the table of kept connections: %s", error)
            await asyncio.sleep(_PERIOD_S)

    def findings(self) -> list[Finding]:
        """The doctor's line, where something is kept."""
        if not self._kept:
            return []
        ports = f"{len(self._kept)} kept port{'s' if len(self._kept) > 1 else ''}"
        if self.relay.is_connected:
            return [Finding("kept connections", "ok", f"the relay serves {ports}")]
        said = f"the relay does not run: connections to {ports} go straight, and end with their container"
        return [Finding("kept connections", "warning", said, "See casemated's journal: it asks for another.")]

    async def probe(self, operation: PodProbe) -> Probed:
        """Whether the pod takes connections at the port now."""
        address = self.state.pod(operation.pod).record.spec.network.address
        if not address:
            return Probed(False)
        return Probed(await relay.takes(address, operation.port, kept.marks(self._table).probe))

    # --- the relay ------------------------------------------------------------------------------------------------

    def _reached(self) -> None:
        """Another relay, or the same again: it gets a listener, and what an earlier one had leads nowhere any more."""
        with relay.listen(kept.marks(self._table).down) as listener:
            if not self.relay.give(GIVEN_LISTENER, listener):
                return
            # Before the rules of an earlier hostd are compared with those of now, which lead elsewhere.
            self._take_over()
            self.port, self._laid = listener.getsockname()[1], False
        self.ensure()

    def _reach(self) -> None:
        """Find the relay again, if one runs: that of an earlier hostd, or one that was hung up on."""
        if not self.relay.is_connected and self.relay.reach():
            log.info("found the relay of kept connections again")

    def _connect(self, fds: list[int]) -> tuple[socket.socket | None, int]:
        """The connection to the pod for the accepted one in *fds*, which this takes; or None, and why."""
        mark = kept.marks(self._table)
        try:
            accepted = socket.socket(fileno=fds[0])
        except OSError as error:
            return None, error.errno or errno.EBADF
        fds.clear()
        with accepted:
            ends = relay.ends(accepted, mark.down)
        if ends is None or ends[0] not in self._kept:
            self.counted["refused"] += 1
            return None, errno.EPERM
        try:
            made = relay.connect(ends[1], ends[0], mark.up)
        except OSError as error:
            self.counted["failed"] += 1
            return None, error.errno or errno.EIO
        self.counted["connected"] += 1
        return made, 0

    def close(self) -> None:
        """This daemon ends; the relay goes on."""
        self.relay.hang_up()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
