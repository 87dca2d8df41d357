"""What ``system doctor`` says of trust: feeds that are damaged or too old, parts of the policy whose day has passed."""

from __future__ import annotations

from casemate.node.core import Core
from casemate.node.trust import feeds, policies
from casemate.spec.api import FindingRow
from casemate.spec.errors import CasemateError


async def findings(core: Core) -> list[FindingRow]:
    """One row for each trouble; one that says ok where there is none."""
    return [*await _feeds(core), *await _policy(core)]


async def _feeds(core: Core) -> list[FindingRow]:
    try:
        found = await feeds.listing(core)
    except CasemateError as error:
        return [FindingRow("feeds", "error", error.detail, str(error.to_problem().get("remedy", error.remedy)))]
    stale = [
        FindingRow(
            "feeds", "warning", f"feed {row.name} is of {row.date}, {row.age_days} days old",
            "`casemate feed update`, or import a newer export.",
        )
        for row in found.feeds if row.stale
    ]  # fmt: skip
    if not found.feeds and core.trust.policy is not None:
        return [
            FindingRow("feeds", "warning", "there is a trust policy and no feed to judge by", "`casemate feed import`")
        ]
    return stale or [FindingRow("feeds", "ok", f"{len(found.feeds)} feeds, none too old")]


async def _policy(core: Core) -> list[FindingRow]:
    if core.trust.policy is None:
        return []
    try:
        found = await policies.listing(core)
    except CasemateError as error:
        return [FindingRow("trust-policy", "error", error.detail, "Apply the document anew.")]
    expired = [
        FindingRow("trust-policy", "warning", f"{row.name}: {line}", "Remove it from the document, or set a new day.")
        for row in found.policies for line in row.expired
    ]  # fmt: skip
    return expired or [FindingRow("trust-policy", "ok", f"{len(found.policies)} documents")]
