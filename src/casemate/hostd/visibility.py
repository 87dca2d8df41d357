"""What hostd opens for the flow recorder and for the pods' resolver, and keeps whole while they run."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from casemate.host import flowsockets, nft
from casemate.host.nft_netlink import IPV4
from casemate.host.nft_rules import OwnRules
from casemate.host.rtnetlink import NetlinkFailed
from casemate.hostd.errors import Watched
from casemate.hostd.protocol import AnyAnswer, AnyEvent, Done
from casemate.hostd.protocol_firewall import FirewallRepaired
from casemate.hostd.protocol_visibility import FlowsWatch, ResolverListen, VisibilityOperation
from casemate.network import flowlog, resolver
from casemate.spec.settings import Settings

log = logging.getLogger("casemate.hostd")

#: A recorder that was killed lets go of the log groups when the kernel has torn it down.
_TRIES, _PAUSE_S = 20, 0.05
_PERIOD_S = 0.5


@dataclass(slots=True)
class Visibility:
    """What was opened. *library* gives the nftables context of the loop's thread; *emit* sends an event to the peer."""

    settings: Settings
    library: Callable[[], nft.Nft]
    emit: Callable[[AnyEvent], None]
    #: The port of the gateway at which the pods' resolver listens; 0 before there is one.
    names_port: int = 0
    refused: list[str] = field(default_factory=list)
    _names: OwnRules = field(init=False)

    def __post_init__(self) -> None:
        self._names = OwnRules(resolver.table_name(self._table), IPV4)

    @property
    def _table(self) -> str:
        return self.settings.text("network.table")

    @property
    def _prefix(self) -> str:
        return self.settings.text("network.link_prefix")

    async def handle(self, operation: VisibilityOperation) -> tuple[AnyAnswer, list[int]]:
        match operation:
            case FlowsWatch():
                opened = await self._open_watch()
                return Done(), [one.detach() for one in opened]
            case ResolverListen():
                names = resolver.listen()
                self.names_port = names[0].getsockname()[1]
                self._names.forget()
                self._ensure()
                # Given away: hostd itself has no socket on any network.
                return Done(), [one.detach() for one in names]

    async def _open_watch(self) -> list[socket.socket]:
        refused = flowsockets.switch_counting_on()
        if refused and refused != self.refused:
            log.warning("connections are not counted: %s cannot be set", ", ".join(refused))
        self.refused = refused
        for _ in range(_TRIES):
            opened: list[socket.socket] = []
            try:
                opened.append(flowsockets.connection_events([self.settings.text("network.pool")]))
                opened.append(flowsockets.packet_log(flowlog.verdict_group(self._table), flowlog.VERDICT_COPY_BYTES))
                opened.append(flowsockets.packet_log(flowlog.hello_group(self._table), flowlog.HELLO_COPY_BYTES))
            except BaseException as error:
                for one in opened:
                    one.close()
                # EPERM is what the kernel answers for a group that another socket has.
                if not isinstance(error, NetlinkFailed) or error.errno not in (errno.EBUSY, errno.EPERM):
                    raise
                await asyncio.sleep(_PAUSE_S)
            else:
                return opened
        raise Watched(f"log group {flowlog.verdict_group(self._table)} has a reader already")

    def _ensure(self) -> None:
        """Make the table of names where it is not whole, or where nobody knows: it may be an earlier version's."""
        lost = self._names.lost()
        if not self.names_port or (self._names.is_known and not lost):
            return
        self._names.make(lambda: resolver.lay(self.library(), self._table, self._prefix, self.names_port))
        line = self._names.describe(lost)
        log.info("%s", line)
        if lost:
            self.emit(FirewallRepaired((line,)))

    async def keep(self) -> None:
        """Make the table again when somebody changed it; never returns. A look costs 20 us."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                self._ensure()
            except (nft.NftFailed, nft.NftMissing, OSError) as error:
                log.error("the table of names: %s", error)
