"""OpenTelemetry over HTTP with JSON: metrics every so often, flow records as logs. Off unless an endpoint is set.

A collector that is away, slow or answers errors costs nothing but records: what could not be sent is tried again while
the ring has it, and counted when it has not. Source: OTLP 1.5 (JSON encoding: names in camelCase, 64-bit as text).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from casemate import __version__
from casemate.node.clock import parse_time
from casemate.node.core import report
from casemate.node.export.metrics import Sample, samples
from casemate.node.flows.query import Wanted
from casemate.spec.api.flows import FlowEnd, FlowRow
from casemate.spec.settings import SettingInvalid

if TYPE_CHECKING:
    from casemate.node.node import Node

TIMEOUT_S = 10.0
#: Records of one request, and how long the first of them waits for more.
BATCH, GATHER_S = 512, 1.0
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 60.0
_MAX_ANSWER_BYTES = 64 << 10
#: INFO and WARN (the data model's severity numbers).
_INFO, _WARN = 9, 13


class SendFailed(Exception):
    """The collector did not take it; *again*: it may later."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


class Telemetry:
    """The exporter of this node."""

    def __init__(self, node: Node) -> None:
        settings = node.core.settings
        self._node = node
        self.endpoint = settings.text("telemetry.endpoint").rstrip("/")
        self._interval_s = settings.number("telemetry.interval")
        self._send_flows = settings.flag("telemetry.flows")
        self._headers = _headers(settings.texts("telemetry.headers"))
        self._host = socket.gethostname()
        self._started_ns = int(node.core.clock() * 1e9)
        self.sent = self.lost = 0
        if self.endpoint:
            check_endpoint(self.endpoint)

    async def run(self) -> None:
        """Send for ever, where there is an endpoint."""
        if not self.endpoint:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._metrics())
            if self._send_flows:
                tasks.create_task(self._flows())

    async def _metrics(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            found = await samples(self._node)
            found.append(Sample("casemate_telemetry_lost_total", "counter", "Records not exported.", self.lost))
            now_ns = int(self._node.core.clock() * 1e9)
            try:
                await self._post("/v1/metrics", metrics_document(found, self._resource(), self._started_ns, now_ns))
            except SendFailed as error:
                report(f"metrics were not taken by {self.endpoint}: {error}")

    async def _flows(self) -> None:
        position: int | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            batch: list[FlowRow] = []
            reached = position
            async for found in self._node.flows.follow(Wanted(), position):
                if found is None:
                    continue
                reached = found[0]
                batch.append(found[1])
                if len(batch) >= BATCH or self._node.flows.newest_stamp <= reached:
                    break
            try:
                await self._post("/v1/logs", logs_document(batch, self._resource()))
                self.sent += len(batch)
                position, delay_s = reached, _FIRST_DELAY_S
                await asyncio.sleep(GATHER_S if len(batch) < BATCH else 0)
            except SendFailed as error:
                if not error.again:
                    self.lost += len(batch)
                    position = reached
                report(f"{len(batch)} flow records were not taken by {self.endpoint}: {error}")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _resource(self) -> dict[str, Any]:
        return {"attributes": attributes({"service.name": "casemated", "service.version": __version__,
                                          "host.name": self._host})}  # fmt: skip

    async def _post(self, path: str, document: Mapping[str, Any]) -> None:
        data = msgspec.json.encode(document)
        await asyncio.to_thread(post, self.endpoint + path, data, self._headers)


def check_endpoint(text: str) -> None:
    """Raises :class:`SettingInvalid` unless *text* is an http or https URL without credentials."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or port == 0:
        raise SettingInvalid(f"telemetry.endpoint {text[:200]!r} is no http or https URL without credentials")


def _headers(texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for line in texts:
        name, equals, value = line.partition("=")
        if not equals or not name.isascii() or not name.replace("-", "").isalnum() or "\n" in value or "\r" in value:
            raise SettingInvalid("an entry of telemetry.headers is not of the form NAME=VALUE")
        found[name] = value
    return found


def post(url: str, data: bytes, headers: Mapping[str, str]) -> None:
    """Send *data*; raises :class:`SendFailed`. Blocks, at most some :data:`TIMEOUT_S`. Redirects are not followed."""
    import http.client  # noqa: PLC0415 - off by default, and not small
    import ssl  # noqa: PLC0415

    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", parts.path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise SendFailed(f"{type(error).__name__}: {error}"[:300], again=True) from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        # OTLP: these may be tried again, all others may not.
        raise SendFailed(f"status {answer.status}", again=answer.status in (429, 502, 503, 504))


def attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    """Attributes with a value, as OTLP has them."""
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
        if value != ""
    ]


def metrics_document(
    found: Iterable[Sample], resource: Mapping[str, Any], started_ns: int, now_ns: int
) -> dict[str, Any]:
    """An ExportMetricsServiceRequest."""
    metrics: dict[str, dict[str, Any]] = {}
    for one in found:
        point = {
            "attributes": attributes(dict(one.labels)), "startTimeUnixNano": str(started_ns),
            "timeUnixNano": str(now_ns), "asDouble": float(one.value),
        }  # fmt: skip
        metric = metrics.setdefault(one.name, {"name": one.name, "description": one.help})
        if one.kind == "counter":
            whole = metric.setdefault("sum", {"dataPoints": [], "aggregationTemporality": 2, "isMonotonic": True})
        else:
            whole = metric.setdefault("gauge", {"dataPoints": []})
        whole["dataPoints"].append(point)
    scope = {"name": "casemate", "version": __version__}
    return {"resourceMetrics": [
        {"resource": resource, "scopeMetrics": [{"scope": scope, "metrics": list(metrics.values())}]}
    ]}  # fmt: skip


def logs_document(rows: Iterable[FlowRow], resource: Mapping[str, Any]) -> dict[str, Any]:
    """An ExportLogsServiceRequest."""
    records = [_log_record(row) for row in rows]
    scope = {"name": "casemate.flows", "version": __version__}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": records}]}]}


def _log_record(row: FlowRow) -> dict[str, Any]:
    at = int(parse_time(row.began, 0.0) * 1e9)
    seen = int(parse_time(row.ended, 0.0) * 1e9) if row.ended else at
    values: dict[str, str | int] = {
        "network.transport": row.protocol, "casemate.flow.number": row.number, "casemate.verdict": row.verdict,
        "casemate.rule": row.rule, "casemate.dns": row.dns, "tls.client.server_name": row.tls,
        "casemate.ended": row.ended, "casemate.via": row.via, "casemate.times": row.times,
        "source.bytes": row.bytes_out, "source.packets": row.packets_out, "destination.bytes": row.bytes_in,
        "destination.packets": row.packets_in, **_end("source", row.source), **_end("destination", row.destination),
    }  # fmt: skip
    source, destination = row.source.name or row.source.address, row.destination.name or row.destination.address
    return {
        "timeUnixNano": str(at), "observedTimeUnixNano": str(seen), "attributes": attributes(values),
        "severityNumber": _WARN if row.verdict == "deny" else _INFO,
        "body": {"stringValue": f"{source} to {destination} {row.protocol}/{row.destination.port}: {row.verdict}"},
    }  # fmt: skip


def _end(side: str, end: FlowEnd) -> dict[str, str | int]:
    return {
        f"{side}.address": end.address, f"{side}.port": end.port, f"casemate.{side}.kind": end.kind,
        f"casemate.{side}.project": end.project, f"casemate.{side}.name": end.name,
        f"casemate.{side}.identity": end.identity,
    }  # fmt: skip
