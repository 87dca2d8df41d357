"""A hostd that keeps containers in memory, and an ASGI client: no socket, no kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from casemate.api.peer import Peer
from casemate.api.routes import ROUTES, SOCKETS
from casemate.api.routing import application
from casemate.hostd import protocol as p
from casemate.hostd.client import Answered, HostdAway
from casemate.hostd.protocol_firewall import FirewallAnswer
from casemate.image.records import ImageConfig, ImageRecord, LayerRecord, LayerRef, Platform
from casemate.node import exits, imagestore
from casemate.node.core import Core
from casemate.node.database import Database
from casemate.node.node import Node
from casemate.spec.errors import CasemateError, NotFound, RemoteError
from casemate.spec.settings import Settings

ROOT = Peer("root", 0, allowed=True, auditor=True)
MEMBER = Peer("ann", 1000, allowed=True, auditor=False)
STRANGER = Peer("eve", 1001, allowed=False, auditor=False)
DIGEST = "sha256:" + "1" * 64
LAYER = "2" * 64


class FakeHostd:
    """Implements :class:`casemate.hostd.client.Hostd`. *fail* answers the next operation of a type with an error."""

    def __init__(self) -> None:
        self.welcome: p.Welcome | None = p.Welcome(1, "boot-1", {"namespace": "crun", "gvisor": "unavailable: no"}, {})
        self.states: dict[str, p.ObservedContainer] = {}
        self.pods: dict[str, set[str]] = {}
        self.calls: list[p.AnyOperation] = []
        self.fail: dict[type, BaseException] = {}
        self.core: Core | None = None
        self.obeys = True
        #: What a container's archive holds.
        self.archive = b""

    async def call(
        self, operation: p.AnyOperation, *, descriptors: Sequence[int] = (), timeout_s: float = 60.0
    ) -> Answered:
        if self.welcome is None:
            raise HostdAway("away")
        self.calls.append(operation)
        if isinstance(operation, p.ContainerArchive):
            os.set_blocking(descriptors[0], False)
            os.write(descriptors[0], self.archive)
        await asyncio.sleep(0)
        error = self.fail.pop(type(operation), None)
        if isinstance(error, CasemateError) and not isinstance(error, HostdAway):
            raise RemoteError(error.to_problem())
        if error is not None:
            raise error
        return Answered(self._answer(operation))

    def tell(self, operation: FirewallAnswer) -> None:
        if self.welcome is None:
            raise HostdAway("away")
        self.calls.append(operation)

    def _answer(self, operation: p.AnyOperation) -> p.AnyAnswer:
        match operation:
            case p.Hello():
                assert self.welcome is not None
                return self.welcome
            case p.ContainerRun(pod=pod, container=container):
                # It has none that it is to make, and those that it is not.
                assert (pod is not None) == (container.pod not in self.pods)
                assert container.id not in self.states
                self.pods.setdefault(container.pod, set()).add(container.id)
                self.states[container.id] = p.ObservedContainer(container.id, "running", 42)
                return p.Created(42, 41, 1_000_000_000)
            case p.ContainerStart(container=id_):
                self.states[id_] = p.ObservedContainer(id_, "running", 43)
                return p.Started(43)
            case p.ContainerKill(container=id_, signal=number):
                if id_ not in self.states:
                    raise RemoteError(NotFound("no such container").to_problem())
                if self.obeys or number == 9:
                    self.end(id_, 128 + number)
                return p.Done()
            case p.ContainerRemove(container=id_, pod=with_pod):
                self.states.pop(id_, None)
                for pod in [one for one, inside in self.pods.items() if id_ in inside]:
                    self.pods[pod].discard(id_)
                    if with_pod and not self.pods[pod]:
                        del self.pods[pod]
                return p.Done()
            case p.PodRemove(pod=pod, force=force):
                assert force or not self.pods.get(pod)
                for id_ in self.pods.pop(pod, ()):
                    self.states.pop(id_, None)
                return p.Done()
            case p.Observe():
                return p.Observed(
                    tuple(
                        p.ObservedPod(pod, "", 1, tuple(self.states[c] for c in inside if c in self.states))
                        for pod, inside in self.pods.items()
                    )
                )
            case p.LayerList():
                return p.Layers(((LAYER, 1),))
            case p.VolumeList():
                return p.Volumes(())
            case p.ContainerUpdate():
                return p.Warnings(("lowered",))
            case p.Doctor() | p.Prune():
                return p.Findings(())
            case p.ContainerStats():
                return p.Stats(1, ())
            case _:
                return p.Done()

    def end(self, id_: str, exit_code: int) -> None:
        """The container's process ends."""
        assert self.core is not None
        at = self.core.clock()
        self.states[id_] = p.ObservedContainer(id_, "exited", 0, exit_code, False, at, at)
        exits.on_event(self.core, p.ContainerExited(id_, exit_code, False, at))


class Api:
    """The application of a node over a fake hostd."""

    def __init__(self, node: Node, hostd: FakeHostd) -> None:
        self.node = node
        self.hostd = hostd
        self.app = application(ROUTES, SOCKETS, node)

    async def send(
        self, method: str, target: str, body: object = None, *, peer: Peer | None = ROOT, raw: bytes | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, decoded body)."""
        path, _, query = target.partition("?")
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "headers": [], "root_path": "", "scheme": "http", "server": None,
            "client": None, "state": {"peer": peer},
        }  # fmt: skip
        waiting = [{"type": "http.request", "body": data, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async with asyncio.timeout(20):
            await self.app(scope, receive, send)  # type: ignore[arg-type]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        decoded = json.loads(content) if content and "json" in headers.get("content-type", "") else content
        return sent[0]["status"], headers, decoded

    async def create(self, **fields: object) -> str:
        status, _, answer = await self.send("POST", "/v1/containers", {"image": "box", **fields})
        assert status == 201, answer
        return str(answer["id"])

    async def status(self, id_: str) -> str:
        return str((await self.send("GET", f"/v1/containers/{id_}"))[2]["summary"]["status"])

    async def until(self, id_: str, status: str) -> None:
        async with asyncio.timeout(10):
            while await self.status(id_) != status:  # noqa: ASYNC110 - asked over HTTP, as a client would
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running_api(folder: Path, hostd: FakeHostd | None = None) -> AsyncIterator[Api]:
    """An API over *folder*; run it again over the same folder and hostd for a restart."""
    settings = Settings({"paths.state": str(folder), "paths.run": str(folder), "network.pool": "10.1.0.0/24",
                         "limits.containers": 50})  # fmt: skip
    hostd = hostd or FakeHostd()
    db = Database(str(folder / "casemate.db"))
    await db.open()
    core = Core(settings, db, hostd)
    hostd.core = core
    core.images.create()
    core.images.put_layer_record(LayerRecord("sha256:" + "3" * 64, f"sha256:{LAYER}", 1, 1, 1,
                                             passwd=b"app:x:7:7::/:/bin/sh\n", passwd_hidden=True))  # fmt: skip
    record = ImageRecord(
        (), DIGEST, "m", "sha256:" + "4" * 64, Platform(),
        (LayerRef("sha256:" + "5" * 64, "sha256:" + "3" * 64, "l", 10),),
        ImageConfig(cmd=("cmd",), exposed_ports=("80/tcp",)),
    )  # fmt: skip
    await db.write(lambda c: imagestore.put(c, record, ("docker.io/library/box:latest",), 1.0))
    node = Node(core)
    try:
        async with core.running():
            yield Api(node, hostd)
    finally:
        await db.close()


def as_dict(value: object) -> Any:
    return msgspec.to_builtins(value)
