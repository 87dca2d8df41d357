"""What every part of the node shares: store, hostd, settings, events, locks, and the tasks in the background."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from casemate.hostd.client import Hostd
from casemate.image.store import Store
from casemate.node.addresses import Pool, parse_pool
from casemate.node.clock import now
from casemate.node.database import Database
from casemate.node.events import Events
from casemate.node.firewall import Firewall
from casemate.node.hub import Hub
from casemate.node.policy.state import Policy
from casemate.node.policy.wallstate import Walls
from casemate.node.resolve import Image
from casemate.node.trust.state import TrustState
from casemate.node.warm import MAX_MESSAGE_BYTES, Warm, WarmSeveral
from casemate.policy.identity import Connection
from casemate.spec.api import WaitAnswer
from casemate.spec.ids import id_from_bytes
from casemate.spec.settings import Settings
from casemate.trust.admission import Admitter, no_policy

if TYPE_CHECKING:
    from casemate.node.keeping.service import Keeping

#: Exit codes of removed containers that ``wait`` still answers, and resolved images kept in memory.
MAX_REMEMBERED = 1024
MAX_IMAGES = 32
#: Registries and publishers that are asked at one time; 60 MB each while they are.
ONLINE_CHILDREN = 4


FlowsBetween = Callable[[float, tuple[str, ...]], Awaitable[Iterable[tuple[Connection, int]]]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: *who* as the audit log has it (``uid:name``), and the descriptor of their API socket.

    *descriptor* answers -1 where there is none to pass on (TLS, or the connection is gone). *grants* answers what the
    settings give to this person. *projects*: those that this person is an operator of; None: every one.
    """

    who: str
    uid: int | None = None
    descriptor: Callable[[], int] = field(default=lambda: -1)
    grants: Callable[[], frozenset[str]] = field(default=frozenset)
    projects: frozenset[str] | None = None

    def sees(self, project: str) -> bool:
        """Whether what is in *project* is open to this person."""
        return self.projects is None or project in self.projects

    def descriptors(self) -> tuple[int, ...]:
        """The ``caller`` descriptor for hostd, if there is one."""
        number = self.descriptor()
        return (number,) if number >= 0 else ()


#: casemated itself, for what it does on its own: restarts, recovery. It holds no grant.
SELF = Caller("casemated")


class Changes:
    """Wakes whoever waits for a change of one container."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def register(self, subject: str) -> asyncio.Future[None]:
        """A future that is done at the next change; register first, look at the state, then wait."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(subject, set())
        waiting.add(future)

        def forget(_: object) -> None:
            waiting.discard(future)
            if not waiting and self._waiting.get(subject) is waiting:
                del self._waiting[subject]

        future.add_done_callback(forget)
        return future

    def tell(self, subject: str) -> None:
        """Something about *subject* changed."""
        for future in list(self._waiting.get(subject, ())):
            if not future.done():
                future.set_result(None)


class Core:
    """The shared state of one node; :meth:`running` holds it while the daemon lives."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        hostd: Hostd,
        *,
        clock: Callable[[], float] = now,
        random_bytes: Callable[[int], bytes] = os.urandom,
        admitter: Admitter = no_policy,
    ) -> None:
        self.settings = settings
        self.db = db
        self.hostd = hostd
        self.clock = clock
        self.random_bytes = random_bytes
        self.admitter = admitter
        #: Children that check signatures, with and without a registry; each starts when it is asked.
        self.evidence_online = WarmSeveral("casemate.node.evidence_child", MAX_MESSAGE_BYTES, ONLINE_CHILDREN)
        self.evidence_offline = Warm("casemate.node.evidence_child", MAX_MESSAGE_BYTES)
        self.trust = TrustState()
        self.events = Events(db)
        self.changes = Changes()
        self.hub = Hub()
        self.images = Store(settings.text("paths.state"))
        self.pool: Pool = parse_pool(settings.text("network.pool"))
        #: Containers that were removed lately, with their project and how they ended.
        self.endings: OrderedDict[str, tuple[str, WaitAnswer]] = OrderedDict()
        #: Images whose layers were read, by manifest digest.
        self.resolved: OrderedDict[str, Image] = OrderedDict()
        #: The end of each exec, told by hostd.
        self.exec_ends: dict[str, asyncio.Future[int]] = {}
        #: Clients that follow statistics, and that read a log, now.
        self.stats_followers = 0
        self.log_readers = 0
        #: Containers whose start is under way; an exit is recorded after it.
        self.starting: dict[str, asyncio.Future[None]] = {}
        #: What holds between workloads, and what the walls' history binds them to.
        self.policy = Policy(settings, db, Firewall(hostd), clock)
        self.walls = Walls()
        #: The recorded connections since a moment with one of those verdicts (none named: with any), with counts; None
        #: where nothing records them.
        self.flows_between: FlowsBetween | None = None
        #: The relay of kept connections; None where this is no whole node (tests).
        self.keeping: Keeping | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: asyncio.TaskGroup | None = None
        self._spawned: set[asyncio.Task[None]] = set()

    @property
    def id_shift(self) -> int:
        """What layers' owners are shifted by on this host (see :class:`casemate.image.jobs.Limits`), as hostd says.

        While hostd is away it is not known: what was converted wrongly meanwhile is converted anew when it is used.
        """
        welcome = self.hostd.welcome
        return int(welcome.host.get("id_shift", "0")) if welcome is not None else 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Tasks of :meth:`spawn` live inside; they are cancelled at the end."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for task in list(self._spawned):
                    task.cancel()

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Run *work* in the background; what it raises goes to the journal, and takes nothing else with it."""

        async def guarded() -> None:
            try:
                await work
            except Exception:
                report(f"{name} failed")

        if self._tasks is None:
            work.close()
            return
        task = self._tasks.create_task(guarded(), name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        # One that is cancelled before its first turn has not begun its work either.
        task.add_done_callback(lambda _: work.close())

    @asynccontextmanager
    async def lock(self, subject: str) -> AsyncGenerator[None]:
        """One change of *subject* at a time."""
        lock = self._locks.get(subject)
        if lock is None:
            lock = self._locks[subject] = asyncio.Lock()
        async with lock:
            yield

    def new_id(self) -> str:
        return id_from_bytes(self.random_bytes(32))

    def remember(self, id_: str, project: str, ending: WaitAnswer) -> None:
        """Keep how a removed container of *project* ended, for whoever still asks."""
        self.endings[id_] = project, ending
        while len(self.endings) > MAX_REMEMBERED:
            self.endings.popitem(last=False)


def report(text: str) -> None:
    """A line, and the exception that is being handled, to the journal (standard error)."""
    sys.stderr.write(f"casemated: {text}\n{traceback.format_exc(limit=30) if sys.exc_info()[0] else ''}")
    sys.stderr.flush()
