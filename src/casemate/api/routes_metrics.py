"""``GET /metrics``: what is counted, for Prometheus. With the grant ``metrics``, or a named client certificate."""

from __future__ import annotations

from starlette.responses import Response

from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import GRANT
from casemate.node.export.metrics import TEXT_TYPE, samples, text
from casemate.spec.errors import GrantMissing


async def metrics(call: Call) -> object:
    peer = call.peer
    named = call.core.settings.texts("metrics.tls_clients")
    allowed = peer.auditor or "metrics" in call.caller.grants() or (peer.uid is None and peer.name in named)
    if not allowed:
        raise GrantMissing(
            f"metrics need the grant 'metrics', which {call.caller.who} does not hold",
            remedy="The administrator adds the user under grants.metrics, or the certificate's name under "
            "metrics.tls_clients, in /etc/casemate/casemate.toml.",
            grant="metrics",
        )
    return Response(text(await samples(call.node)), media_type=TEXT_TYPE)


ROWS = (
    Row("GET", "/metrics", metrics, "What is counted, for Prometheus", NoQuery, answer="text/plain", errors=(403,),
        scope=GRANT),
)  # fmt: skip
