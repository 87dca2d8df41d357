"""Policy in force: documents, workloads and quarantines as a planner, and the firewall kept equal to it.

The store is what is wanted and is written first; then the planner, then the kernel in one transaction. Whatever fails
between leaves the kernel with what it had (it forbids at least what it forbade), and :meth:`Policy.enforce` gives it
the whole again: when hostd comes back, and before the next workload's link comes up.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from casemate.node.database import Database
from casemate.node.firewall import Firewall
from casemate.node.policy import endpoints, store
from casemate.node.policy.endpoints import Workload
from casemate.node.policy.planning import planner_of, put_together, replanned
from casemate.node.policy.reading import read_stored
from casemate.node.policy.ruleset import Passage, effective, patched, wall_labels
from casemate.node.policy.workloads import Workloads
from casemate.policy.askable import askable
from casemate.policy.errors import PolicyInvalid
from casemate.policy.identity import NOBODY, Allocation, Endpoint
from casemate.policy.parse import Document, Policies, together
from casemate.policy.plan import Planner, Transaction
from casemate.policy.rules import RuleSet
from casemate.policy.triggers import Trigger
from casemate.policy.verdict import Action
from casemate.policy.walls import Wall
from casemate.policy.windows import minute_of_week
from casemate.spec.api.policy import PolicyRow, PolicyState, QuarantineRow
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings

T = TypeVar("T")
_DEFAULTS = {"allow": Action.ALLOW, "deny": Action.DENY, "refer": Action.REFER}
_NOTHING = Transaction("no policy")


class Policy:
    """What holds on this node. Changes are made one at a time, under :attr:`lock`."""

    def __init__(self, settings: Settings, db: Database, firewall: Firewall, clock: Callable[[], float]) -> None:
        self._db = db
        self._clock = clock
        self.firewall = firewall
        self.lock = asyncio.Lock()
        default = settings.text("policy.default")
        if default not in _DEFAULTS:
            raise PolicyInvalid(f"policy.default is {default[:40]!r}; allow, deny and refer are allowed")
        self.default = _DEFAULTS[default]
        self.documents: dict[str, Document] = {}
        self.rows: dict[str, PolicyRow] = {}
        self._policies: Policies | None = Policies()
        #: Of all documents: those of a change of a few rules are the same.
        self.walls: tuple[Wall, ...] = ()
        self.triggers: tuple[Trigger, ...] = ()
        #: What the documents say alone, and with quarantines and walls before it.
        self.own = RuleSet()
        self.rules = RuleSet()
        self.workloads = Workloads()
        #: Those that hold, by the workload's name, and what each lets through, by its number.
        self.quarantines: dict[str, QuarantineRow] = {}
        self.passages: dict[int, tuple[Passage, ...]] = {}
        self.planner: Planner | None = None
        self.enforced = False
        self.why_not = "casemate-hostd has not answered yet"
        #: Why a document of the store cannot be read: then nothing is allowed.
        self.broken = ""
        self._allocation: Allocation = NOBODY
        self._loaded = False
        #: Whether a change of documents has reached the planner: what is refused before leaves it as it is.
        self._in_step = False
        #: Answers' addresses under names of rules, with the address of the pod that was told.
        self.named: Callable[[], Iterable[tuple[Endpoint, str]]] = tuple
        #: Told after each change of what holds (flows, time windows).
        self.changed: list[Callable[[], None]] = []

    # --- what is there ------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether there is anything that the firewall has to hold."""
        return bool(self.documents or self.quarantines or self.broken) or self.default is not Action.ALLOW

    @property
    def policies(self) -> Policies:
        """All documents as one set; put together when it is asked for, some 0.1 us a rule."""
        if self._policies is None:
            self._policies = together(self.documents.values())
        return self._policies

    def _set_policies(self, policies: Policies) -> None:
        self._policies, self.walls = policies, policies.walls

    def labelled(self, workload: Workload, walls: Iterable[Wall] | None = None) -> Endpoint:
        """The workload as rules see it: with the labels of walls (those in force, or *walls*) and of its quarantine."""
        more = wall_labels(self.walls if walls is None else walls, workload.endpoint)
        held = self.quarantines.get(workload.name)
        if held is not None:
            more[endpoints.QUARANTINE] = str(held.number)
        return endpoints.with_labels(workload.endpoint, more)

    def ends(self, walls: Iterable[Wall] | None = None) -> list[Endpoint]:
        """Every workload that has been started once, as rules see it."""
        return [self.labelled(one, walls) for one in self.workloads.values() if one.made]

    def number(self, pod: str) -> int:
        """The identity's number of a pod; 0 where policy does not hold or the pod never ran."""
        workload = self.workloads.get(pod)
        if workload is None or self.planner is None or self.planner.end(workload.name) is None:
            return 0
        return self.planner.number(workload.name)

    def number_of(self, name: str) -> int:
        """The same of a workload."""
        return self.number(self.workloads.names.get(name, ""))

    def askable(self, number: int) -> tuple[str, ...] | None:
        """The names of the outside that pods of the identity *number* may ask for; None: any."""
        return None if self.planner is None else askable(self.planner.compiler, number)

    def state(self) -> PolicyState:
        planner = self.planner
        return PolicyState(
            active=self.active, enforced=self.enforced, generation=self.firewall.generation,
            rules=len(self.rules.rules), endpoints=sum(one.made for one in self.workloads.values()),
            identities=len(planner.compiler.identities) if planner else 0, default=self.default.name.lower(),
            why_not=self.broken or self.why_not,
        )  # fmt: skip

    # --- from the store -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Everything from the store, once; call it before the first change."""
        if self._loaded:
            return
        async with self.lock:
            await self.load_held()

    async def load_held(self) -> None:
        """:meth:`load`, for who holds :attr:`lock`."""
        if self._loaded:
            return

        def work(db: sqlite3.Connection) -> tuple[
            list[tuple[PolicyRow, dict[str, object]]], Allocation, list[Workload], list[QuarantineRow]
        ]:  # fmt: skip
            return (
                store.documents(db), store.allocation(db), endpoints.read_workloads(db), store.quarantines(db)
            )  # fmt: skip

        kept, self._allocation, workloads, held = await self._db.write(work)
        self.rows = {row.key: row for row, _ in kept}
        self.quarantines = {row.workload: row for row in held}
        # Closed, until who knows what each lets through has read it.
        self.passages = {row.number: () for row in held}
        for workload in workloads:
            self.workloads.note(workload)
        self.documents, self.broken = await asyncio.to_thread(read_stored, [value for _, value in kept])
        self._set_policies(together(self.documents.values()))
        self.triggers = _triggers(self.documents.values())
        self._loaded = True
        await self._rebuild()

    def worked_out(self, policies: Policies) -> tuple[RuleSet, RuleSet]:
        """The rules for the kernel and those for referrals, at this hour, if *policies* were in force."""
        default = Action.DENY if self.broken else self.default
        return effective(policies, minute_of_week(self._clock()), default, self.passages)

    async def _rebuild(self) -> None:
        """A planner anew from what is here; the kernel is not touched."""
        self.rules, self.own = self.worked_out(self.policies)
        self.enforced = False
        if not self.active:
            self.planner = None
            return
        ends, rules, allocation = self.ends(), self.rules, self._allocation
        planner = await planner_of(rules, ends, allocation)
        for end, viewer in self.named():
            planner.put(end, viewer=viewer)
        self.planner = planner
        await self._keep_numbers()

    async def _keep_numbers(self) -> None:
        """Write identity numbers that are new: before the kernel knows them."""
        if self.planner is None or self.planner.allocation is self._allocation:
            return
        before, after = self._allocation, self.planner.allocation
        await self._db.write(lambda db: store.keep_allocation(db, before, after))
        self._allocation = after

    # --- the kernel ---------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """hostd went away: what it holds stays in the kernel, and has to be compared when it is back."""
        self.enforced, self.why_not = False, "casemate-hostd is away; what it had laid in the kernel holds"

    async def enforce(self) -> None:
        """Give the firewall all of it, unless it has it; raises what hostd answers."""
        async with self.lock:
            await self.load_held()
            if not self.enforced:
                await self._replace()

    async def _replace(self) -> None:
        planner = self.planner
        if planner is None:
            whole = _NOTHING
        else:
            whole = await asyncio.to_thread(planner.whole)
        try:
            await self.firewall.replace(whole, in_force=planner is not None)
        except CasemateError as error:
            self.enforced, self.why_not = False, error.detail
            raise
        self.enforced, self.why_not = True, ""
        self._tell()

    async def _commit(self, transaction: Transaction, lifetime_s: int = 0) -> None:
        """One change to the kernel; all of it anew where hostd has something else than we think.

        Whoever works by the rules is told in any case: that the kernel sees no difference does not mean there is none.
        """
        try:
            if not self.enforced:
                await self._replace()
            elif transaction.size:
                await self._change(transaction, lifetime_s)
        finally:
            self._tell()

    async def _change(self, transaction: Transaction, lifetime_s: int) -> None:
        try:
            await self.firewall.change(transaction, lifetime_s=lifetime_s)
        except CasemateError as error:
            self.enforced, self.why_not = False, error.detail
            if error.to_problem().get("status") != 409:
                raise
            await self._replace()

    def _tell(self) -> None:
        for told in self.changed:
            told()

    # --- workloads ----------------------------------------------------------------------------------------------

    async def pod_up(self, pod: str) -> None:
        """The pod is about to get its link: its identity is in the kernel when this returns."""
        async with self.lock:
            await self.load_held()
            workload = await self._db.read(lambda db: endpoints.read_workload(db, pod))
            if workload is None:
                return
            self.workloads.note(replace(workload, made=True))
            await self._put(pod)

    async def _put(self, pod: str) -> None:
        if self.planner is None:
            return
        transaction = await self._planned(lambda planner: planner.put(self.labelled(self.workloads[pod])))
        await self._keep_numbers()
        await self._commit(transaction)

    async def pod_gone(self, pod: str) -> None:
        """The pod is removed, and its address may be another's soon."""
        async with self.lock:
            workload = self.workloads.forget(pod)
            if workload is None:
                return
            planner = self.planner
            if planner is None or planner.end(workload.name) is None:
                return
            transaction = await self._planned(lambda one: one.drop(workload.name))
            await self._commit(transaction)

    async def renamed(self, pod: str) -> None:
        """The workload has another name: the same pod under another endpoint."""
        async with self.lock:
            held = await self._db.read(store.quarantines)
            self.quarantines = {row.workload: row for row in held}
            old = self.workloads.get(pod)
            fresh = await self._db.read(lambda db: endpoints.read_workload(db, pod))
            if old is None or fresh is None or old.name == fresh.name:
                return
            if self.planner is not None and self.planner.end(old.name) is not None:
                gone = await self._planned(lambda one: one.drop(old.name))
                self.workloads.note(replace(fresh, made=old.made))
                put = await self._planned(lambda one: one.put(self.labelled(self.workloads[pod])))
                await self._keep_numbers()
                # The kernel knows addresses, not names: what was taken out and put in again is nothing to it.
                if self.enforced and (set(gone.address_deletes) != set(put.address_adds) or put.adds or put.deletes):
                    self.enforced, self.why_not = False, f"{old.name} is {fresh.name} now"
                    await self._replace()
            else:
                self.workloads.note(replace(fresh, made=old.made))

    async def _planned(self, step: Callable[[Planner], Transaction]) -> Transaction:
        """A step of the planner; where it fails half-way the planner is made anew from before."""
        planner = self.planner
        assert planner is not None
        try:
            return step(planner)
        except BaseException:
            await self._rebuild()
            raise

    # --- names in rules -----------------------------------------------------------------------------------------

    async def name(self, end: Endpoint, viewer: str, lifetime_s: int, *, again: bool) -> bool:
        """*end* is what *viewer* was told under names of rules; with *again* the kernel's timer begins anew.

        Whether anything was laid: without a policy there is nothing to lay.
        """
        async with self.lock:
            await self.load_held()
            if self.planner is None:
                return False
            transaction = await self._planned(lambda planner: planner.put(end, viewer=viewer))
            if again and not transaction.address_adds:
                same = tuple(self.planner.elements_of(end.name))
                transaction = replace(transaction, address_deletes=same, address_adds=same)
            await self._keep_numbers()
            await self._commit(transaction, lifetime_s)
            return True

    async def unname(self, name: str) -> None:
        """What :meth:`name` laid goes."""
        async with self.lock:
            if self.planner is not None and self.planner.end(name) is not None:
                await self._commit(await self._planned(lambda planner: planner.drop(name)))

    # --- documents ----------------------------------------------------------------------------------------------

    async def change_documents(
        self, put: Iterable[Document], drop: Iterable[str], written: Callable[[sqlite3.Connection], T],
        rows: Callable[[], dict[str, PolicyRow]],
    ) -> tuple[Transaction, T]:  # fmt: skip
        """Documents come and go; :attr:`lock` is held. *written* stores them, before the kernel has them.

        Raises what planning raises (then nothing is changed). That the kernel could not be told is no error here:
        :attr:`enforced` says so, and it is told when it can be.
        """
        gone, new = set(drop), {one.key: one for one in put}
        before = (self.documents, self._policies, self.walls, self.rules, self.own)
        touched = [self.documents[key] for key in gone | new.keys() if key in self.documents]
        documents = without(self.documents, gone) | new
        try:
            transaction = await self._planned_documents(documents, touched, list(new.values()))
            result = await self._db.write(written)
        except BaseException:
            self.documents, self._policies, self.walls, self.rules, self.own = before
            if self._in_step:
                await self._rebuild()
            raise
        finally:
            self._in_step = False
        self.rows = rows()
        if any(one.parsed.triggers for one in (*touched, *new.values())):
            self.triggers = _triggers(documents.values())
        await self._keep_numbers()
        try:
            await self._commit(transaction)
        except CasemateError as error:
            self.why_not = error.detail
        return transaction, result

    async def _planned_documents(
        self, documents: dict[str, Document], gone: list[Document], come: list[Document]
    ) -> Transaction:
        """The planner's step from the documents in force to these; who calls restores what was on failure."""
        planner = self.planner
        patch = patched(self.rules, self.own, gone, come) if planner is not None else None
        self.documents = documents
        if patch is not None and planner is not None and self.active:
            # A few rules take less than a hop to another thread does.
            self._in_step = True
            transaction = planner.replace_rules(patch.rules, differ=(patch.removed, patch.added))
            self._policies, self.rules, self.own = None, patch.rules, patch.own
            return transaction
        policies = await put_together(documents.values())
        same_walls = self.walls == policies.walls
        self._set_policies(policies)
        if planner is None or not self.active or not same_walls:
            # From or to no policy at all, or who is in which wall has changed: all of it in one replacement.
            self._in_step = True
            await self._rebuild()
            return self.planner.start if self.planner else _NOTHING
        rules, own = await asyncio.to_thread(self.worked_out, policies)
        self._in_step = True
        transaction = await replanned(planner, rules)
        self.rules, self.own = rules, own
        return transaction

    async def reload_rules(self) -> None:
        """What quarantines let through has been read; before the kernel is told for the first time."""
        async with self.lock:
            await self._rebuild()

    async def rules_again(self, reason: str) -> None:
        """The same documents at another hour, or with other quarantines; :attr:`lock` is held."""
        rules, own = self.worked_out(self.policies)
        planner = self.planner
        if planner is None or not self.active:
            await self._rebuild()
            await self._replace()
            return
        if rules == self.rules:
            return
        transaction = await replanned(planner, rules, reason)
        self.rules, self.own = rules, own
        await self._keep_numbers()
        await self._commit(transaction)

    async def relabelled(self, pods: Iterable[str]) -> None:
        """The labels of these pods' project are others in the store now."""
        async with self.lock:
            await self.load_held()
            for pod in pods:
                old = self.workloads.get(pod)
                fresh = await self._db.read(lambda db, pod=pod: endpoints.read_workload(db, pod))  # type: ignore[misc]
                if old is not None and fresh is not None:
                    self.workloads.note(replace(fresh, made=old.made))
                    await self.put_again(pod)

    async def put_again(self, pod: str) -> None:
        """The labels that Casemate gives this pod have changed; :attr:`lock` is held."""
        workload = self.workloads.get(pod)
        if workload is not None and workload.made:
            await self._put(pod)


def without(held: dict[str, T], gone: Iterable[str]) -> dict[str, T]:
    """A copy of *held* without the keys *gone*: a copy takes a tenth of what leaving them out one by one does."""
    left = dict(held)
    for key in gone:
        left.pop(key, None)
    return left


def _triggers(documents: Iterable[Document]) -> tuple[Trigger, ...]:
    return tuple(trigger for one in documents for trigger in one.parsed.triggers)
