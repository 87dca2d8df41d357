"""Kept ports: the table that leads their connections to the relay, and the relay's connections to the pods.

What is kept stands in the pods' records. The table is there while a pod keeps a port; the relay is casemated's child:
hostd gives it a listener, and for each accepted connection one to the pod (:mod:`casemate.network.relay`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from casemate.host import nft, nft_netlink, policyroutes
from casemate.host.nft_netlink import DELETE_ELEMENTS, NEW_ELEMENTS, Batch, NftSocket
from casemate.host.rtnetlink import NetlinkFailed
from casemate.hostd.protocol_keeping import RELAY_ANSWER, RELAY_REQUEST, PodProbe, Probed
from casemate.hostd.state import State
from casemate.network import flowlog, relay
from casemate.network.firewall import kept
from casemate.network.plan import check_prefix
from casemate.spec.settings import Settings
from casemate.spec.workload import PodSpec

log = logging.getLogger("casemate.hostd")

_PERIOD_S = 0.5
_REQUESTS_A_TURN = 32
_MAX_REQUEST_DESCRIPTORS = 4
#: Before the main table (32,766) and whatever else people add; after the table of the host's own addresses (0).
_PRIORITY, _MASK = 90, 0xFFFFFFFE


@dataclass(slots=True)
class Keeping:
    """*library* gives the nftables context of the loop's thread; *followed* is told of our own changes."""

    settings: Settings
    state: State
    library: Callable[[], nft.Nft]
    followed: nft.Followed
    counted: Counter[str] = field(default_factory=Counter)
    #: The listener's port; 0 before a relay asked for one.
    port: int = 0
    _kept: dict[tuple[str, int], str] = field(default_factory=dict)
    _read: bool = False
    _laid: bool = False
    _socket: NftSocket | None = None
    _channel: socket.socket | None = None

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

    def is_whole(self) -> bool:
        return nft_netlink.rules(self.name, nft_netlink.INET) == kept.RULES

    def ensure(self) -> None:
        """Make the table and the routing rule, or what of them is missing; every element that should be is there."""
        self._read_records()
        if not self._kept:
            return
        mark = kept.marks(self._table)
        if policyroutes.ensure_local(mark.kept, _MASK, kept.routing_table(self._table), _PRIORITY):
            log.info("made the routing rule of kept connections")
        with self.followed.own_change():
            # A relay that an earlier hostd gave a listener goes on with it.
            if not self.is_whole() or (self.port and not self._laid):
                prefix = check_prefix(self.settings.text("network.link_prefix"))
                group = flowlog.hello_group(self._table)
                self.library().run(kept.script(self._table, prefix, self.port, group, flowlog.HELLO_COPY_BYTES))
                self._laid = True
                log.info("made nftables table inet %s", self.name)
        batch = Batch(self.name)
        batch.flush_set("kept")
        batch.flush_set("itself")
        batch.elements(NEW_ELEMENTS, "kept", [kept.kept_element(IPv4Address(a).packed, p) for a, p in self._kept])
        batch.elements(NEW_ELEMENTS, "itself", [kept.itself_element(IPv4Address(a).packed) for a in self._addresses()])
        self._commit(batch)

    def _addresses(self) -> Iterable[str]:
        return {address for address, _ in self._kept}

    def _commit(self, batch: Batch) -> None:
        if self._socket is None:
            self._socket = NftSocket()
        with self.followed.own_change():
            self._socket.commit(batch)

    def _remove(self) -> None:
        """Nothing is kept: no packet looks for it."""
        self._laid = False
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
                    mark = kept.marks(self._table)
                    made = policyroutes.ensure_local(mark.kept, _MASK, kept.routing_table(self._table), _PRIORITY)
                    if made or not self.is_whole():
                        self.ensure()
                except (nft.NftFailed, nft.NftMissing, NetlinkFailed, OSError) as error:
                    log.error("the table of kept connections: %s", error)
            await asyncio.sleep(_PERIOD_S)

    async def probe(self, operation: PodProbe) -> Probed:
        """Whether the pod takes connections at the port now."""
        address = self.state.pod(operation.pod).record.spec.network.address
        if not address:
            return Probed(False)
        return Probed(await relay.takes(address, operation.port, kept.marks(self._table).probe))

    # --- the relay ------------------------------------------------------------------------------------------------

    def listen(self) -> list[int]:
        """A listener and a channel for the relay; what an earlier one had leads nowhere any more."""
        self._close_channel()
        listener = relay.listen(kept.marks(self._table).down)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_request)
        self.port, self._laid = listener.getsockname()[1], False
        self.ensure()
        return [listener.detach(), theirs.detach()]

    def _close_channel(self) -> None:
        gone, self._channel = self._channel, None
        if gone is not None:
            asyncio.get_running_loop().remove_reader(gone.fileno())
            gone.close()

    def _on_request(self) -> None:
        for _ in range(_REQUESTS_A_TURN):
            channel = self._channel
            if channel is None:
                return
            room = socket.CMSG_SPACE(_MAX_REQUEST_DESCRIPTORS * 4)
            try:
                data, beside, flags, _ = channel.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, beside, flags = b"", [], 0
            fds = _descriptors(beside)
            try:
                if len(data) != RELAY_REQUEST.size or len(fds) != 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    # The end, or what no relay of ours says.
                    self._close_channel()
                    return
                self._answer(channel, RELAY_REQUEST.unpack(data)[0], fds)
            finally:
                for number in fds:
                    os.close(number)

    def _answer(self, channel: socket.socket, number: int, fds: list[int]) -> None:
        made, why = self._connect(fds)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))] if made else []
        try:
            channel.sendmsg([RELAY_ANSWER.pack(number, why)], beside, socket.MSG_NOSIGNAL)
        except OSError:
            # A relay that does not read, or is gone: it bounds its own waiting.
            self.counted["unanswered"] += 1
        finally:
            if made:
                made.close()

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
        self._close_channel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _descriptors(beside: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % 4])
    return list(numbers)
