"""Documents: apply, diff, list, show, remove."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.errors import AdministratorNeeded, ProjectDenied
from casemate.node.policy import rights, store, wallpaths
from casemate.node.policy.errors import PolicyNotFound, WallPathOpened
from casemate.node.policy.reading import read_text
from casemate.node.policy.state import Policy, without
from casemate.policy import analysis
from casemate.policy.addresses import BlockIndex
from casemate.policy.compile import Compiler
from casemate.policy.identity import NOBODY, Endpoint, identity_of
from casemate.policy.parse import Document, Policies, together
from casemate.policy.plan import Planner, Transaction
from casemate.policy.rules import RuleSet, block_groups
from casemate.spec.api.policy import PolicyApplied, PolicyChange, PolicyDetail, PolicyList, PolicyRow

#: Lines of the kernel's transaction, and pairs of identities, that an answer shows.
MAX_STEPS = 200
MAX_DIFF_LINES = 2000
#: Rules times identities up to which a set is looked at as a whole when it is applied: some ten milliseconds.
MAX_LOOK = 20_000


def text_of(value: object) -> str:
    """*value* as YAML, keys in the order in which they were written."""
    from casemate.node.policy import yaml_text  # noqa: PLC0415 - there

    return yaml_text.dumped(value)


@dataclass(frozen=True, slots=True)
class _Change:
    put: tuple[Document, ...]
    drop: tuple[str, ...]
    told: tuple[PolicyChange, ...]
    #: What was in force of those, before.
    old: dict[str, Document]

    def with_diffs(self) -> tuple[PolicyChange, ...]:
        """What is told, line by line; YAML of large documents takes a while."""
        new = {one.key: one for one in self.put}
        return tuple(
            one
            if one.action == "unchanged"
            else PolicyChange(one.key, one.action, _diff(one.key, self.old.get(one.key), new.get(one.key)))
            for one in self.told
        )


@dataclass(frozen=True, slots=True)
class _Done:
    """What the kernel was (or would be) told, with identities' names, and the whole set."""

    transaction: Transaction
    names: dict[int, str]
    documents: dict[str, Document]
    paths: wallpaths.Seen


async def apply(
    core: Core, data: bytes, caller: Caller, *, dry_run: bool, whole: bool, path_reason: str = ""
) -> PolicyApplied:  # fmt: skip
    """Put the documents of *data* (YAML or JSON) in force; with *whole*, all others go.

    Everything or nothing. Raises what reading raises, :class:`GrantMissing` for the operator's documents,
    :class:`WallPathOpened` unless an officer gives a *path_reason*.
    """
    read = await read_text(data)
    _demand(caller, read, whole=whole, path_reason=path_reason)
    policy = core.policy
    async with policy.lock:
        await policy.load_held()
        change = _changes(policy, read, whole=whole)
        done = await _change(core, policy, change, caller, dry_run=dry_run, path_reason=path_reason)
    return await _told(policy, change, done, caller, dry_run=dry_run)


async def remove(
    core: Core, keys: Iterable[str], caller: Caller, *, dry_run: bool, path_reason: str = ""
) -> PolicyApplied:  # fmt: skip
    """Take documents out of force. Raises :class:`PolicyNotFound`, and :class:`WallPathOpened` as :func:`apply`."""
    policy = core.policy
    async with policy.lock:
        await policy.load_held()
        found = [find(_seen(policy, caller), key) for key in keys]
        _demand(caller, found, path_reason=path_reason)
        told = tuple(PolicyChange(one.key, "removed") for one in found)
        change = _Change((), tuple(one.key for one in found), told, {one.key: one for one in found})
        done = await _change(core, policy, change, caller, dry_run=dry_run, path_reason=path_reason)
    return await _told(policy, change, done, caller, dry_run=dry_run)


def _demand(caller: Caller, read: Iterable[Document], *, whole: bool = False, path_reason: str = "") -> None:
    """An operator of projects changes what is these projects', and nothing that concerns others."""
    if caller.projects is None:
        return
    if whole or path_reason:
        what = "that all other documents go" if whole else "to open a path across a wall"
        raise AdministratorNeeded(f"{what} is not open to {caller.who}, an operator of single projects")
    for one in read:
        if not one.project:
            raise AdministratorNeeded(f"the operator's document {one.key} is not open to {caller.who}")
        if not caller.sees(one.project):
            raise ProjectDenied(f"{one.key}: project {one.project!r} is not open to {caller.who}", project=one.project)


def _seen(policy: Policy, caller: Caller) -> dict[str, Document]:
    """The documents that *caller* sees."""
    if caller.projects is None:
        return policy.documents
    return {key: one for key, one in policy.documents.items() if caller.sees(one.project)}


def find(documents: dict[str, Document], key: str) -> Document:
    """The document *key*; the kind may be left out where the rest says which. Raises :class:`PolicyNotFound`."""
    if key in documents:
        return documents[key]
    found = [one for name, one in documents.items() if name.partition("/")[2] == key or one.name == key]
    if len(found) == 1:
        return found[0]
    several = f": {', '.join(one.key for one in found[:5])}" if found else ""
    raise PolicyNotFound(f"document {key[:140]!r} is {'not there' if not found else 'more than one'}{several}")


def _changes(policy: Policy, read: list[Document], *, whole: bool) -> _Change:
    put: list[Document] = []
    told: list[PolicyChange] = []
    for one in read:
        old = policy.documents.get(one.key)
        if old is not None and old.value == one.value:
            told.append(PolicyChange(one.key, "unchanged"))
            continue
        put.append(one)
        told.append(PolicyChange(one.key, "changed" if old else "added"))
    drop = sorted(policy.documents.keys() - {one.key for one in read}) if whole else []
    told += [PolicyChange(key, "removed") for key in drop]
    before = {one.key: policy.documents[one.key] for one in told if one.key in policy.documents}
    return _Change(tuple(put), tuple(drop), tuple(told), before)


def _values(value: object, most: int = MAX_DIFF_LINES) -> int:
    """How many values are within *value*, counted to little more than *most*: each is a line at least."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    count = 1
    for one in inner:
        count += _values(one, most - count)
        if count > most:
            break
    return count


def _diff(key: str, old: Document | None, new: Document | None) -> str:
    if any(one and _values(one.value) > MAX_DIFF_LINES for one in (old, new)):
        return f"more than {MAX_DIFF_LINES} lines: too long to show"
    before, after = (text_of(one.value).splitlines() if one else [] for one in (old, new))
    if len(before) + len(after) > MAX_DIFF_LINES:
        return f"{len(before)} lines before, {len(after)} now: too long to show"
    import difflib  # noqa: PLC0415 - only `policy diff` needs it

    return "\n".join(difflib.unified_diff(before, after, f"in force: {key}", f"given: {key}", lineterm=""))


async def _change(
    core: Core, policy: Policy, change: _Change, caller: Caller, *, dry_run: bool, path_reason: str
) -> _Done:  # fmt: skip
    """Do it, or rehearse it; the policy's lock is held."""
    touched = [*change.put, *(policy.documents[key] for key in change.drop)]
    gone = set(change.drop)
    documents = without(policy.documents, gone) | {one.key: one for one in change.put}
    if dry_run:
        policies = await asyncio.to_thread(together, list(documents.values()))
        transaction, planner = await asyncio.to_thread(_rehearsed, policy, policies)
        paths = await wallpaths.looked(policy, documents)
        return _Done(transaction, _names(planner.compiler if planner else None, transaction), documents, paths)
    for one in touched:
        if not one.project:
            rights.demand(caller, f"the operator's document {one.key}")
    if not touched:
        return _Done(Transaction("nothing"), {}, documents, await wallpaths.looked(policy))
    paths, opened = wallpaths.NOTHING, tuple[wallpaths.Path, ...]()
    if policy.walls or any(one.parsed.walls for one in change.put):
        try:
            paths, opened = await wallpaths.demand(core, documents, caller, reason=path_reason)
        except WallPathOpened as error:
            if caller.projects is None:
                raise
            raise WallPathOpened("a path through what other projects allow; an administrator is shown it") from error
    at = core.clock()

    def written(db: sqlite3.Connection) -> None:
        for one in change.put:
            store.put_document(db, one, at, caller.who)
        for key in change.drop:
            store.drop_document(db, key)
        wallpaths.allowed(db, at, opened, caller, path_reason)
        for told in change.told:
            if told.action != "unchanged":
                events.add(db, at, "policy", told.key, told.action)
                audit.append(db, at, caller.who, f"policy.{told.action}", told.key, rules=_rules(documents, told.key))

    rows = without(policy.rows, gone) | {one.key: _row(one, at, caller.who) for one in change.put}
    transaction, _ = await policy.change_documents(change.put, change.drop, written, lambda: rows)
    core.walls.paths = {path.crossing.key for path in paths.paths} if policy.walls else None
    core.events.wake()
    names = _names(policy.planner.compiler if policy.planner else None, transaction)
    return _Done(transaction, names, documents, paths)


async def _told(policy: Policy, change: _Change, done: _Done, caller: Caller, *, dry_run: bool) -> PolicyApplied:
    """The answer; what is odd about the set is looked for now, when the kernel has it and others may go on.

    An operator of single projects is told of the documents, and not what the whole set means for others.
    """
    if caller.projects is not None:
        return PolicyApplied(
            dry_run, await asyncio.to_thread(change.with_diffs), elements=done.transaction.size,
            enforced=policy.enforced and not dry_run, why_not="" if policy.enforced else policy.why_not,
            generation=policy.firewall.generation,
        )  # fmt: skip

    def name(number: int) -> str:
        return done.names.get(number, "everyone" if not number else str(number))

    # One hop: each may wait 5 ms for Python's lock.
    warnings, diffs = await asyncio.to_thread(
        lambda: (_warnings(policy, done.documents, change), change.with_diffs())
    )  # fmt: skip
    transaction = done.transaction
    tightened = tuple(f"{name(one)} to {name(other)}" for one, other in transaction.tightened[:MAX_STEPS])
    return PolicyApplied(
        dry_run, diffs, tuple(warnings), tuple(path.text for path in done.paths.inside[:MAX_STEPS]),
        tuple(path.text for path in done.paths.paths if path.crossing.outside)[:MAX_STEPS], transaction.size, tightened,
        tuple(transaction.describe()[:MAX_STEPS]) if dry_run else (), policy.enforced and not dry_run,
        "" if policy.enforced else policy.why_not, policy.firewall.generation,
    )  # fmt: skip


def _rules(documents: dict[str, Document], key: str) -> int:
    found = documents.get(key)
    return len(found.parsed.rules) if found else 0


def _row(one: Document, at: float, who: str) -> PolicyRow:
    return PolicyRow(
        one.key, one.kind, one.project, one.name, len(one.parsed.rules), len(one.parsed.walls), rfc3339(at), who
    )


def _warnings(policy: Policy, documents: dict[str, Document], change: _Change) -> list[str]:
    """What is odd about the set. In a thread.

    All of it is compiled once more for that. Where this would take seconds, only the documents that came are looked
    at, and `policy diff` says the rest.
    """
    known = policy.planner.compiler.identities if policy.planner else {}
    if len(policy.rules.rules) * len(known) > MAX_LOOK:
        warnings = analysis.warnings_of(together(change.put).rules, known.values())
        return [*warnings, "the set is large: contradictions were not looked for"]
    policies = together(documents.values())
    ends = policy.ends(policies.walls)
    _, own = policy.worked_out(policies)
    return analysis.warnings(policies, compiled(own, ends), ends)


def compiled(rules: RuleSet, ends: Iterable[Endpoint]) -> Compiler:
    """*rules* for the identities of *ends*, numbered anew."""
    index = BlockIndex(block_groups(rules))
    numbers = NOBODY.allocate(identity_of(end, index) for end in ends).numbers
    return Compiler(rules, {number: identity for identity, number in numbers.items()})


def _rehearsed(policy: Policy, policies: Policies) -> tuple[Transaction, Planner | None]:
    """What the kernel would be told, on a planner of its own. In a thread."""
    rules, _ = policy.worked_out(policies)
    ends = policy.ends(policies.walls)
    if policy.planner is None or policies.walls != policy.policies.walls:
        planner = Planner(rules, ends)
        return planner.start, planner
    planner = Planner(policy.rules, ends, allocation=policy.planner.allocation)
    return planner.replace_rules(rules, "rehearsal"), planner


def _names(compiler: Compiler | None, transaction: Transaction) -> dict[int, str]:
    """The identities whose connections are cut, in words."""
    wanted = {number for pair in transaction.tightened[:MAX_STEPS] for number in pair}
    known = compiler.identities if compiler else {}
    return {number: known[number].describe() for number in wanted if number in known}


async def listing(core: Core, caller: Caller, project: str) -> PolicyList:
    """The documents in force that *caller* sees: those of *project* (empty: all) and the operator's."""
    policy = core.policy
    await policy.load()
    rows = [
        row
        for _, row in sorted(policy.rows.items())
        if (not project or row.project in ("", project)) and caller.sees(row.project)
    ]
    return PolicyList(tuple(rows), policy.state())


async def show(core: Core, key: str, caller: Caller) -> PolicyDetail:
    await core.policy.load()
    one = find(_seen(core.policy, caller), key)
    value: dict[str, Any] = one.value
    return PolicyDetail(core.policy.rows[one.key], value, text_of(value))
