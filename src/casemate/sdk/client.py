"""The client: one method for each thing that the API does; values are those of :mod:`casemate.spec.api`.

::

    from casemate.sdk import Client
    result = Client().run("debian", ["uname", "-r"])
    print(result.exit_code, result.stdout)
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from casemate.sdk.attach import Attached
from casemate.sdk.errors import ApiBroken
from casemate.sdk.transport import Pairs, Transport
from casemate.sdk.trust import Trust
from casemate.sdk.websocket import WebSocket
from casemate.spec import api as schema
from casemate.spec.api.flows import FlowList, FlowMap, FlowRow

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run gave."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Client:
    """The API at *transport*; without one, that of this host."""

    def __init__(self, transport: Transport | None = None, *, project: str = "default") -> None:
        self.transport = transport or Transport()
        self.project = project

    @property
    def trust(self) -> Trust:
        """Scans, feeds, the trust policy, signatures, publishers."""
        return Trust(self)

    # containers

    def create(self, image: str, command: Sequence[str] | None = None, **fields: Any) -> schema.ContainerCreated:
        """Create a container; *fields* are those of :class:`casemate.spec.api.ContainerRequest`."""
        request = schema.ContainerRequest(
            image=image, command=None if command is None else tuple(command), project=self.project, **fields
        )
        return self._post("/v1/containers", request, schema.ContainerCreated)

    def start(self, reference: str) -> None:
        self._post(f"/v1/containers/{quote(reference, '')}/start")

    def stop(self, reference: str, timeout_s: int | None = None) -> None:
        self._post(f"/v1/containers/{quote(reference, '')}/stop", schema.StopRequest(timeout=timeout_s))

    def kill(self, reference: str, signal: str = "SIGKILL") -> None:
        self._post(f"/v1/containers/{quote(reference, '')}/kill", schema.KillRequest(signal))

    def wait(self, reference: str, condition: str = "exited") -> schema.WaitAnswer:
        path = f"/v1/containers/{quote(reference, '')}/wait"
        return self._decode(self.transport.ask("POST", path, self._pairs(condition=condition)), schema.WaitAnswer)

    def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        pairs = self._pairs(force=force, volumes=volumes)
        self.transport.ask("DELETE", f"/v1/containers/{quote(reference, '')}", pairs)

    def inspect(self, reference: str) -> schema.ContainerDetail:
        return self._get(f"/v1/containers/{quote(reference, '')}", schema.ContainerDetail)

    def containers(self, *filters: str, everything: bool = False) -> tuple[schema.ContainerSummary, ...]:
        pairs = [*self._pairs(all=everything), *(("filter", text) for text in filters)]
        return self._decode(self.transport.ask("GET", "/v1/containers", pairs), schema.ContainerList).containers

    def attach(self, reference: str, *, stdin: bool = False, start: bool = False, logs: bool = False) -> Attached:
        """Attach to a container; with *start*, start it once its output is connected."""
        query = urlencode(self._pairs(stdin=stdin, start=start, logs=logs))
        return Attached(WebSocket(self.transport, f"/v1/containers/{quote(reference, '')}/attach?{query}"))

    def run(
        self, image: str, command: Sequence[str] | None = None, *, stdin: bytes | None = None, **fields: Any
    ) -> Ran:
        """Create, start, feed *stdin*, collect the output, wait, and remove."""
        fields.setdefault("auto_remove", True)
        created = self.create(image, command, stdin=stdin is not None, **fields)
        with self.attach(created.id, stdin=stdin is not None, start=True) as attached:
            return Ran(*attached.communicate(stdin))

    def exec(self, reference: str, command: Sequence[str], *, stdin: bytes | None = None, **fields: Any) -> Ran:
        """Run a further process in a running container."""
        request = schema.ExecRequest(command=tuple(command), stdin=stdin is not None, **fields)
        path = f"/v1/containers/{quote(reference, '')}/exec"
        created = self._post(path, request, schema.ExecCreated)
        with Attached(WebSocket(self.transport, f"/v1/exec/{created.id}/attach")) as attached:
            return Ran(*attached.communicate(stdin))

    def logs(self, reference: str, *, follow: bool = False, **query: object) -> Iterator[tuple[int, bytes]]:
        """(stream, text) of each piece of the log; stream 1 is standard output, 2 standard error."""
        data = b""
        pairs = self._pairs(follow=follow, **query)
        for piece in self.transport.stream("GET", f"/v1/containers/{quote(reference, '')}/logs", pairs):
            data += piece
            while len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[4:8], "big"):
                end = 8 + int.from_bytes(data[4:8], "big")
                yield data[0], data[8:end]
                data = data[end:]

    def stat_path(self, reference: str, path: str) -> schema.PathStat:
        """What stands at *path* in a container."""
        target = f"/v1/containers/{quote(reference, '')}/archive"
        with self.transport.send("HEAD", target, self._pairs(path=path)) as response:
            header = response.getheader("x-casemate-path-stat", "")
        return self._decode(base64.b64decode(header), schema.PathStat)

    def copy_out(self, reference: str, path: str) -> Iterator[bytes]:
        """A tar of *path*."""
        target = f"/v1/containers/{quote(reference, '')}/archive"
        return self.transport.stream("GET", target, self._pairs(path=path))

    def copy_in(self, reference: str, path: str, tar: Iterable[bytes]) -> None:
        """Unpack *tar* below *path*."""
        target = f"/v1/containers/{quote(reference, '')}/archive"
        with self.transport.send("PUT", target, self._pairs(path=path), tar) as response:
            response.read()

    # images and operations

    def images(self) -> tuple[schema.ImageSummary, ...]:
        return self._get("/v1/images", schema.ImageList, ()).images

    def pull(self, reference: str, **fields: Any) -> schema.Operation:
        """Begin a pull; :meth:`follow` waits for its end."""
        return self._post("/v1/images/pull", schema.PullRequest(reference, **fields), schema.Operation, ())

    def import_image(self, archive: Iterable[bytes], *, tag: str = "", format_: str = "auto") -> schema.Operation:
        """Begin the import of an archive."""
        pairs = [("tag", tag), ("format", format_)]
        with self.transport.send("POST", "/v1/images/import", pairs, archive) as response:
            return self._decode(response.read(), schema.Operation)

    def remove_image(self, reference: str, *, force: bool = False) -> schema.Removed:
        pairs = [("ref", reference), ("force", str(force).lower())]
        return self._decode(self.transport.ask("DELETE", "/v1/images", pairs), schema.Removed)

    def follow(self, operation: schema.Operation) -> schema.Operation:
        """Wait for the end of an operation."""
        for event, data in self.events_of(f"/v1/operations/{operation.id}/events"):
            if event == "end":
                return self._decode(data, schema.Operation)
        return self._get(f"/v1/operations/{operation.id}", schema.Operation, ())

    def events(self, **query: object) -> Iterator[schema.EventRow]:
        """Events of the node."""
        for event, data in self.events_of("/v1/events", [(key, _text(value)) for key, value in query.items()]):
            if event == "event":
                yield self._decode(data, schema.EventRow)

    def flows(self, **query: object) -> FlowList:
        """Who talked to whom; *query* are the parameters of ``GET /v1/flows`` (``source`` and ``target`` for its
        ``from`` and ``to``).
        """
        return self._get("/v1/flows", FlowList, _flow_pairs(query))

    def follow_flows(self, **query: object) -> Iterator[FlowRow]:
        """Who talks to whom, as it happens: each connection when it begins, and when it ends."""
        for event, data in self.events_of("/v1/flows/follow", _flow_pairs(query)):
            if event == "flow":
                yield self._decode(data, FlowRow)

    def flow_map(self, **query: object) -> FlowMap:
        """The service map."""
        return self._get("/v1/flows/map", FlowMap, _flow_pairs(query))

    def events_of(self, path: str, query: Pairs = ()) -> Iterator[tuple[str, bytes]]:
        """(event, data) of a stream of server-sent events."""
        rest = b""
        for piece in self.transport.stream("GET", path, query):
            rest += piece
            *blocks, rest = rest.split(b"\n\n")
            for block in blocks:
                fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if line[:1] != b":" and b": " in line)
                if b"data" in fields:
                    yield fields.get(b"event", b"message").decode(), fields[b"data"]

    # the node

    def version(self) -> schema.VersionAnswer:
        return self._get("/v1/version", schema.VersionAnswer, ())

    def info(self) -> schema.InfoAnswer:
        return self._get("/v1/info", schema.InfoAnswer, ())

    def doctor(self) -> schema.DoctorAnswer:
        return self._get("/v1/doctor", schema.DoctorAnswer, ())

    def _pairs(self, **query: object) -> list[tuple[str, str]]:
        pairs = [(key, _text(value)) for key, value in query.items()]
        return [("project", self.project), *pairs]

    def _get(self, path: str, kind: type[T], query: Pairs | None = None) -> T:
        return self._decode(self.transport.ask("GET", path, self._pairs() if query is None else query), kind)

    def _post(self, path: str, body: object = None, kind: type[T] | None = None, query: Pairs | None = None) -> T:
        data = None if body is None else msgspec.json.encode(body)
        # The project of a new object stands in its body.
        pairs = (() if kind is schema.ContainerCreated else self._pairs()) if query is None else query
        answer = self.transport.ask("POST", path, pairs, data)
        return self._decode(answer, kind) if kind is not None else None  # type: ignore[return-value]

    def _decode(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise ApiBroken(f"an answer is no {kind.__name__}: {error}") from error


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flow_pairs(query: dict[str, object]) -> Pairs:
    names = {"source": "from", "target": "to"}
    return [(names.get(key, key), _text(value)) for key, value in query.items()]
