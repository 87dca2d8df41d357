"""What hostd opens for the flow recorder and for the pods' resolver, and keeps whole while they run."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from casemate.host import flowsockets, nft
from casemate.host.rtnetlink import NetlinkFailed
from casemate.hostd.errors import Watched
from casemate.hostd.protocol import AnyAnswer, Done
from casemate.hostd.protocol_visibility import FlowsWatch, ResolverListen, VisibilityOperation
from casemate.network import flowlog, resolver
from casemate.spec.settings import Settings

log = logging.getLogger("casemate.hostd")

#: A recorder that was killed lets go of the log groups when the kernel has torn it down.
_TRIES, _PAUSE_S = 20, 0.05
_PERIOD_S = 0.5


@dataclass(slots=True)
class Visibility:
    """What was opened. *library* gives libnftables."""

    settings: Settings
    library: Callable[[], nft.Nft]
    #: The port of the gateway at which the pods' resolver listens; 0 before there is one.
    names_port: int = 0
    watching: bool = False
    #: Whether the table of names leads to that port.
    laid: bool = False
    generation: int = -1
    _generations: nft.Generations = field(default_factory=nft.Generations)
    refused: list[str] = field(default_factory=list)

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
                self.watching = True
                self._ensure()
                return Done(), [one.detach() for one in opened]
            case ResolverListen():
                names = resolver.listen()
                self.names_port, self.laid = names[0].getsockname()[1], False
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
        if self.watching and flowlog.ensure(self.library(), self._table, self._prefix):
            log.info("made nftables table inet %s", flowlog.table_name(self._table))
        if self.names_port and not (self.laid and resolver.is_whole(self._table)):
            resolver.lay(self.library(), self._table, self._prefix, self.names_port)
            self.laid = True
            log.info("made nftables table ip %s", resolver.table_name(self._table))
        self.generation = self._generations.now()

    async def keep(self) -> None:
        """Make the tables again when somebody flushed them; never returns. A look costs 20 us."""
        with contextlib.suppress(nft.NftFailed, nft.NftMissing):
            # A recorder that an earlier hostd served reads on.
            self.watching = self.watching or flowlog.is_whole(self._table)
        while True:
            await asyncio.sleep(_PERIOD_S)
            if not self.watching and not self.names_port:
                continue
            try:
                if self._generations.now() != self.generation:
                    self._ensure()
            except (nft.NftFailed, nft.NftMissing, OSError) as error:
                log.error("the tables of flows and names: %s", error)
