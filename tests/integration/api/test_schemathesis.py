"""Random requests made from the OpenAPI document, against the real daemons: no answer is a 500, each fits its schema.

Bounded in time and examples. What ends or floods the daemons, or streams without end, is left out by name.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, Phase, settings
from tests.integration.daemons import Daemons, running_daemons

from casemate.api import openapi
from casemate.api.routes import ROUTES, SOCKETS

schemathesis = pytest.importorskip("schemathesis", reason="missing: schemathesis")
pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("default")]

#: A stream without end, and what would start real work on the host for each example (mmdebstrap, a registry).
LEFT_OUT = {
    ("GET", "/v1/stats"),
    ("POST", "/v1/images/build-debian"),
    ("POST", "/v1/images/pull"),
    ("POST", "/v1/images/push"),
    # They ask a registry, a publisher or a mirror that is not there, and wait for it: 20 s an example.
    ("POST", "/v1/trust/verify"),
    ("POST", "/v1/trust/resolve"),
    ("POST", "/v1/trust/attach"),
    ("POST", "/v1/trust/sources"),
    ("POST", "/v1/feeds/update"),
    ("GET", "/v1/containers/{ref}/attach"),
    ("GET", "/v1/exec/{id}/attach"),
    ("GET", "/v1/doctor"),
    ("POST", "/v1/prune"),
    # A tar and a Debian package have tests of their own; a generator of random ones adds nothing.
    ("POST", "/v1/kernels"),
    # Asked with other methods as well, and POST is one.
    ("GET", "/v1/kernels"),
    ("PUT", "/v1/containers/{ref}/archive"),
    ("POST", "/v1/images/import"),
}
EXAMPLES = 6


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("casemate", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def _send(path: str, case: Any) -> tuple[int, str, bytes]:
    target = case.path
    for name, value in (case.path_parameters or {}).items():
        target = target.replace("{" + name + "}", quote(str(value), safe=""))
    pairs = []
    for name, value in (case.query or {}).items():
        pairs += [(name, str(item)) for item in value] if isinstance(value, list) else [(name, str(value))]
    if pairs:
        target += "?" + urlencode(pairs, errors="surrogatepass")
    body = case.body
    data = None
    if isinstance(body, (bytes, bytearray)):
        data = bytes(body)
    elif body is not None and type(body).__name__ != "NotSet":
        data = json.dumps(body).encode()
    connection = _Unix(path)
    try:
        # What is refused before its body was read is answered and closed: the answer counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(case.method, target, body=data, headers={"connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read(1 << 20)
    finally:
        connection.close()


_document = openapi.document(ROUTES, SOCKETS)
# Streams that nobody named: a request for one would never end.
LEFT_OUT |= {(row.method, row.path) for row in ROUTES if row.answer == "text/event-stream"}
for _method, _path in LEFT_OUT:
    _document["paths"][_path].pop(_method.lower(), None)
_document["paths"] = {path: methods for path, methods in _document["paths"].items() if methods}
api = schemathesis.openapi.from_dict(_document)


@pytest.fixture(scope="module")
def own_daemons() -> Iterator[Daemons]:
    """A pair of its own: random requests prune and remove what the other tests' pair holds."""
    with running_daemons() as pair:
        yield pair


@api.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_api(case: Any, own_daemons: Daemons) -> None:
    status, kind, body = _send(str(own_daemons.socket), case)
    assert status != 500, body
    documented = {int(code) for code in case.operation.definition.raw["responses"]}
    assert status in documented, f"{status} is not in the document: {body[:500]!r}"
    if status >= 400:
        assert kind == "application/problem+json"
        problem = json.loads(body) if body else None
        assert case.method == "HEAD" or (problem and problem["trace_id"] and problem["remedy"]), body
