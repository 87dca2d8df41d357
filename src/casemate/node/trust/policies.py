"""The documents of the trust policy in the store: applied together or not at all, and in force from then on."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec

from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core, report
from casemate.node.trust.admission import ask
from casemate.node.trust.rechecks import GRANT
from casemate.node.trust.scans import today
from casemate.spec.api.trust import (
    TrustApplied,
    TrustPolicyDocument,
    TrustPolicyList,
    TrustPolicyRow,
    TrustPolicyText,
    TrustTestAnswer,
    TrustTestRequest,
    TrustTestRow,
)
from casemate.spec.errors import Conflict, Corrupt, GrantMissing, NotFound

if TYPE_CHECKING:
    from casemate.node.trust.documents import Named
    from casemate.trust.rules.model import TrustPolicy

MAX_POLICIES = 256


class PolicyNotFound(NotFound):
    code = "trust.policy_not_found"
    title = "No such document of the trust policy"
    remedy = "`casemate trust policy ls` lists them."


def demand(caller: Caller, what: str) -> None:
    """Raises :class:`GrantMissing` unless *caller* may change what images are judged by."""
    if GRANT not in caller.grants():
        raise GrantMissing(
            f"{what} needs the grant {GRANT!r}, which {caller.who} does not hold",
            remedy="The administrator adds the user under grants.trust in /etc/casemate/casemate.toml.", grant=GRANT,
        )  # fmt: skip


async def load(core: Core) -> None:
    """Put what is stored in force. What cannot be read refuses everything, and says so in the journal."""
    core.trust.policy = await _in_force(core)


async def _in_force(core: Core) -> TrustPolicy | None:
    rows = await core.db.read(_rows)
    if not rows:
        return None
    from casemate.node.trust.documents import merged  # noqa: PLC0415 - nothing of it is loaded without a policy
    from casemate.trust.rules.model import TrustPolicy  # noqa: PLC0415 - as above

    try:
        return merged([_named(name, document) for name, _, _, document in rows])
    except Corrupt:
        report("the stored trust policy cannot be read: every image is refused until it is applied anew")
        return TrustPolicy()


def _rows(db: sqlite3.Connection) -> list[tuple[str, float, str, bytes]]:
    return db.execute("SELECT name, applied_at, who, document FROM trust_policies ORDER BY name").fetchall()


def _named(name: str, document: bytes) -> Named:
    from casemate.node.trust.documents import Named, Spec  # noqa: PLC0415 - as above

    try:
        return Named(name, msgspec.json.decode(document, type=Spec))
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the stored trust policy {name!r} cannot be read: {error}") from error


async def stored(core: Core) -> tuple[Named, ...]:
    """The documents in force. Raises :class:`Corrupt`."""
    return tuple(_named(name, document) for name, _, _, document in await core.db.read(_rows))


async def read(core: Core, text: TrustPolicyText, others: tuple[Named, ...]) -> tuple[tuple[Named, ...], TrustPolicy]:
    """The documents of *text*, and what they are together with *others*. Raises ``PolicyInvalid`` and its kin."""
    from casemate.node.trust.judge_jobs import Policies, ReadJob  # noqa: PLC0415 - as above

    answer = await ask(core.trust.judge, ReadJob(text=text.text, origin=text.origin, today=today(core), others=others))
    assert isinstance(answer, Policies)
    return answer.fresh, answer.whole


async def apply(core: Core, text: TrustPolicyText, caller: Caller) -> TrustApplied:
    """Store the documents of *text*, in the place of those of their names; all of them, or none."""
    demand(caller, "to change the trust policy")
    async with core.lock("trust-policy"):
        others = await _readable(core, text)
        fresh, whole = await read(core, text, others)
        names = tuple(policy.name for policy in fresh)
        if len({*names, *(policy.name for policy in others)}) > MAX_POLICIES:
            raise Conflict(f"more than {MAX_POLICIES} documents of trust policy", remedy="Join some of them in one.")

        def write(db: sqlite3.Connection) -> None:
            at = core.clock()
            for policy in fresh:
                row = (policy.name, at, caller.who, msgspec.json.encode(policy.spec))
                db.execute("INSERT OR REPLACE INTO trust_policies VALUES (?, ?, ?, ?)", row)
            events.add(db, at, "trust", "", "policy-apply", documents=list(names))
            audit.append(db, at, caller.who, "trust.policy.apply", "", documents=list(names))

        await core.db.write(write)
        core.trust.policy = whole
    core.trust.change(f"trust policy {', '.join(names)} was applied")
    core.events.wake()
    return TrustApplied(names)


async def _readable(core: Core, text: TrustPolicyText) -> tuple[Named, ...]:
    """The stored documents. One that is damaged keeps no other from being applied in its place: it is named."""
    found: list[Named] = []
    for name, _, _, document in await core.db.read(_rows):
        try:
            found.append(_named(name, document))
        except Corrupt:
            if f"name: {name}" not in text.text:
                raise
    return tuple(found)


async def remove(core: Core, name: str, caller: Caller) -> None:
    """Take a document away. Raises :class:`PolicyNotFound`, and ``PolicyInvalid`` where others need what is in it."""
    demand(caller, "to change the trust policy")
    async with core.lock("trust-policy"):
        rows = await core.db.read(_rows)
        if name not in {row[0] for row in rows}:
            raise PolicyNotFound(f"the trust policy has no document {name!r}", name=name)
        rest = tuple(_named(row[0], row[3]) for row in rows if row[0] != name)
        if rest:
            await _check(core, rest)

        def write(db: sqlite3.Connection) -> None:
            at = core.clock()
            db.execute("DELETE FROM trust_policies WHERE name=?", (name,))
            events.add(db, at, "trust", "", "policy-remove", documents=[name])
            audit.append(db, at, caller.who, "trust.policy.remove", name)

        await core.db.write(write)
        await load(core)
    core.trust.change(f"trust policy {name} was removed")
    core.events.wake()


async def _check(core: Core, rest: tuple[Named, ...]) -> None:
    """*rest* as one policy, by the child that compiles its conditions and keys."""
    first = msgspec.json.encode(
        {"apiVersion": "casemate/v1", "kind": "TrustPolicy", "metadata": {"name": rest[0].name}, "spec": rest[0].spec}
    )
    await read(core, TrustPolicyText(first.decode(), "what would be left"), rest[1:])


async def listing(core: Core) -> TrustPolicyList:
    """Every document, with what of it has expired."""
    day = today(core)
    found = []
    for name, at, who, document in await core.db.read(_rows):
        spec = _named(name, document).spec
        expired = [f"exception from {row.rule} ended on {row.until}" for row in spec.exceptions if row.until < day]
        expired += [f"ignore of {row.ident} ended on {row.until}" for row in spec.ignores if row.until < day]
        found.append(
            TrustPolicyRow(
                name, rfc3339(at), who, len(spec.rules), len(spec.signers), len(spec.exceptions), len(spec.ignores),
                spec.dry_run, tuple(expired),
            )
        )  # fmt: skip
    return TrustPolicyList(tuple(found))


async def show(core: Core, name: str) -> TrustPolicyDocument:
    """A document as it can be applied again."""
    for policy in await stored(core):
        if policy.name == name:
            spec = {key: value for key, value in msgspec.to_builtins(policy.spec).items() if value}
            return TrustPolicyDocument("casemate/v1", "TrustPolicy", {"name": name}, spec)
    raise PolicyNotFound(f"the trust policy has no document {name!r}", name=name)


async def test(core: Core, request: TrustTestRequest) -> TrustTestAnswer:
    """Run a user's cases against documents that need not be in force."""
    from casemate.node.trust.judge_jobs import TestJob, Tests  # noqa: PLC0415 - as above
    from casemate.trust.rules.model import TrustPolicy  # noqa: PLC0415 - as above

    policy = core.trust.policy or TrustPolicy()
    if request.policy:
        _, policy = await read(core, TrustPolicyText(request.policy, request.origin), ())
    job = TestJob(policy=policy, text=request.text, origin=request.origin, today=today(core))
    answer = await ask(core.trust.judge, job)
    assert isinstance(answer, Tests)
    rows = tuple(
        TrustTestRow(
            row.name, not row.lacks, row.lacks, row.decision.answer, row.decision.level, row.decision.segment,
            row.decision.rule, row.decision.grade().reason[:2000],
        )
        for row in answer.rows
    )  # fmt: skip
    return TrustTestAnswer(all(row.passed for row in rows), rows)
