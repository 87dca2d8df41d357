"""Samples as Prometheus' text and as OTLP; what a collector answers; endpoints and headers that are refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from casemate.node.export import telemetry
from casemate.node.export.metrics import Sample, text
from casemate.node.export.telemetry import SendFailed, check_endpoint, logs_document, metrics_document, post
from casemate.spec.api.flows import FlowEnd, FlowRow
from casemate.spec.settings import SettingInvalid

FOUND = [
    Sample("casemate_pods", "gauge", "Pods.", 2),
    Sample("casemate_dns_total", "counter", "Questions.", 3, (("what", 'a"b\\c\nd'),)),
    Sample("casemate_dns_total", "counter", "Questions.", 0.5, (("what", "own"),)),
]
ROW = FlowRow(
    7, "2026-11-22T10:00:00.500000Z", "2026-11-22T10:00:02.000000Z", FlowEnd("pod", "10.0.0.1", 4000, "shop", "web"),
    FlowEnd("world", "192.0.2.1", 443), "tcp", "deny", "wall", tls="x.org", bytes_out=9,
)  # fmt: skip


def test_prometheus_text() -> None:
    assert text(FOUND) == (
        "# HELP casemate_pods Pods.\n# TYPE casemate_pods gauge\ncasemate_pods 2\n"
        "# HELP casemate_dns_total Questions.\n# TYPE casemate_dns_total counter\n"
        'casemate_dns_total{what="a\\"b\\\\c\\nd"} 3\ncasemate_dns_total{what="own"} 0.5\n'
    )


def test_otlp_metrics() -> None:
    document = metrics_document(FOUND, {"attributes": []}, 5, 9)
    metrics = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert [one["name"] for one in metrics] == ["casemate_pods", "casemate_dns_total"]
    assert metrics[0]["gauge"]["dataPoints"][0]["asDouble"] == 2.0
    assert metrics[1]["sum"]["isMonotonic"] is True
    assert [point["timeUnixNano"] for point in metrics[1]["sum"]["dataPoints"]] == ["9", "9"]


def test_otlp_logs() -> None:
    document = logs_document([ROW], {"attributes": []})
    (record,) = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert record["timeUnixNano"] == "1795341600500000000"
    assert record["body"] == {"stringValue": "web to 192.0.2.1 tcp/443: deny"}
    values: dict[str, Any] = {one["key"]: one["value"] for one in record["attributes"]}
    assert values["source.bytes"] == {"intValue": "9"}
    assert values["tls.client.server_name"] == {"stringValue": "x.org"}
    assert record["severityNumber"] == 13


@contextmanager
def collector(status: int) -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            got.append(str(self.headers.get("X-Key")).encode())
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", got
    thread.join(10)
    server.server_close()


def test_what_the_collector_answers() -> None:
    with collector(200) as (url, got):
        post(f"{url}/v1/logs", b"{}", {"X-Key": "k"})
    assert got == [b"{}", b"k"]
    for status, again in ((503, True), (400, False), (302, False)):
        with collector(status) as (url, _), pytest.raises(SendFailed) as caught:
            post(f"{url}/v1/logs", b"{}", {})
        assert caught.value.again is again
    with pytest.raises(SendFailed) as caught:
        post("http://127.0.0.1:1/v1/logs", b"{}", {})
    assert caught.value.again


@pytest.mark.parametrize("url", ["x", "ftp://h", "http://", "http://u:p@h:1", "http://h:x", "http://h:0"])
def test_endpoints_that_are_refused(url: str) -> None:
    with pytest.raises(SettingInvalid):
        check_endpoint(url)


@pytest.mark.parametrize("line", ["x", "=y", "a b=c", "a=b\r\nc: d"])
def test_headers_that_are_refused_are_not_shown(line: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        telemetry._headers([line])
    assert line not in caught.value.detail
