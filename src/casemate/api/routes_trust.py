"""Routes of the trust policy: documents, tests, dry runs, and why something may run."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, IN_QUERY
from casemate.node.trust import policies
from casemate.spec.api.trust import (
    PolicyName,
    TrustApplied,
    TrustDryRun,
    TrustPolicyDocument,
    TrustPolicyList,
    TrustPolicyText,
    TrustTestAnswer,
    TrustTestRequest,
    TrustWhy,
)


class NameQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: PolicyName


class WhyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*name*: of a container, or of an image."""

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    project: str = "default"


async def list_policies(call: Call) -> object:
    return await policies.listing(call.core)


async def show_policy(call: Call) -> object:
    return await policies.show(call.core, call.query.name)


async def apply_policy(call: Call) -> object:
    return await policies.apply(call.core, call.body, call.caller)


async def remove_policy(call: Call) -> None:
    await policies.remove(call.core, call.query.name, call.caller)


async def test_policy(call: Call) -> object:
    return await policies.test(call.core, call.body)


async def dry_run(call: Call) -> object:
    from casemate.node.trust.dryrun import dry_run as run  # noqa: PLC0415 - as below

    return await call.until_gone(run(call.core, call.body))


async def why(call: Call) -> object:
    from casemate.node.trust.why import why as explain  # noqa: PLC0415 - it brings the rules with it

    return await call.until_gone(explain(call.core, call.query.name, call.project))


_POLICY = "/v1/trust/policy"
ROWS = (
    Row("GET", "/v1/trust/policies", list_policies, "List documents of the trust policy", NoQuery,
        answer=TrustPolicyList, scope=ADMINISTRATOR),
    Row("GET", _POLICY, show_policy, "Show a document of the trust policy", NameQuery, answer=TrustPolicyDocument,
        errors=(404,), scope=ADMINISTRATOR),
    Row("POST", _POLICY, apply_policy, "Apply documents of the trust policy", NoQuery, body=TrustPolicyText,
        answer=TrustApplied, errors=(403, 409, 422), scope=ADMINISTRATOR),
    Row("DELETE", _POLICY, remove_policy, "Remove a document of the trust policy", NameQuery, status=204,
        errors=(403, 404, 422), scope=ADMINISTRATOR),
    Row("POST", f"{_POLICY}/test", test_policy, "Run cases against the trust policy", NoQuery, body=TrustTestRequest,
        answer=TrustTestAnswer, errors=(422,), scope=ADMINISTRATOR),
    Row("POST", f"{_POLICY}/dry-run", dry_run, "What documents would change", NoQuery, body=TrustPolicyText,
        answer=TrustDryRun, errors=(422,), scope=ADMINISTRATOR),
    Row("GET", "/v1/trust/why", why, "Why a container or an image may run", WhyQuery, answer=TrustWhy, errors=(404,),
        scope=IN_QUERY),
)  # fmt: skip
