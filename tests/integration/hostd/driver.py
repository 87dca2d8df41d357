"""A hostd of a test's own: folders, prefixes, a range of ids, and a plain blocking client."""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from tests.integration.fixtures_rootfs import busybox_layer
from tests.integration.leaks import Scope, clean, left, new_scope

from casemate.hostd import protocol
from casemate.network.nat import Nat
from casemate.spec.ids import id_from_bytes
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, Resources

SOURCE = Path(__file__).parents[3] / "src"


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0
    answer: protocol.AnyAnswer | None = None
    event: protocol.AnyEvent | None = None


class Refused(Exception):
    """hostd answered Failed."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["detail"])
        self.problem = problem
        self.code = problem["code"]


class Client:
    """One connection; calls are made one after the other, events are kept."""

    live: ClassVar[weakref.WeakSet[Client]] = weakref.WeakSet()

    def __init__(self, path: Path, *, hello: bool = True, timeout_s: float = 60.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.path = path
        Client.live.add(self)
        self.events: list[Any] = []
        self.fds: list[int] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}
        if hello:
            try:
                self.welcome = self.call(protocol.Hello())
            except BaseException:
                self.socket.close()
                raise

    def send(self, operation: Any, fds: list[int] | None = None) -> int:
        number = next(self._numbers)
        data = msgspec.msgpack.encode(protocol.Request(number, operation))
        self.send_raw(data, fds)
        return number

    def send_raw(self, data: bytes, fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def receive(self) -> _Message | None:
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(64))
        for _, _, payload in ancillary:
            numbers = array.array("i")
            numbers.frombytes(payload)
            self.fds.extend(numbers)
        if not data:
            return None
        message = msgspec.msgpack.decode(data, type=_Message)
        if message.event is not None:
            self.events.append(message.event)
        else:
            self._answers[message.number] = message.answer
        return message

    def answer(self, number: int) -> Any:
        while number not in self._answers:
            if self.receive() is None:
                raise ConnectionError("hostd closed the connection")
        answer = self._answers.pop(number)
        if isinstance(answer, protocol.Failed):
            raise Refused(answer.problem)
        return answer

    def call(self, operation: Any, fds: list[int] | None = None) -> Any:
        return self.answer(self.send(operation, fds))

    def event(self, kind: type, **values: Any) -> Any:
        """The next event of *kind* with these fields, taken out."""
        while True:
            for one in self.events:
                if isinstance(one, kind) and all(getattr(one, name) == value for name, value in values.items()):
                    self.events.remove(one)
                    return one
            if self.receive() is None:
                raise ConnectionError("hostd closed the connection")

    def take(self) -> int:
        """The oldest descriptor that came."""
        return self.fds.pop(0)

    def close(self) -> None:
        for number in self.fds:
            os.close(number)
        self.fds.clear()
        self.socket.close()


class Hostd:
    """A daemon with everything of its own, within *scope*."""

    _used = itertools.count()

    def __init__(self, scope: Scope, **settings: str) -> None:
        self.scope = scope
        folder = scope.folder
        folder.chmod(0o711)
        slot = (os.getpid() * 7 + next(self._used)) % 60
        environment = scope.environment
        self.run = Path(environment["CASEMATE_PATHS_HOST_RUN"])
        self.state = Path(environment["CASEMATE_PATHS_HOST_STATE"])
        self.node = Path(environment["CASEMATE_PATHS_STATE"])
        self.api = Path(environment["CASEMATE_PATHS_RUN"])
        self.first_id = 2_000_000_000 + slot * 20_000_000
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}",
            **environment,
            "CASEMATE_DAEMON_USER": "root",
            "CASEMATE_USERNS_FIRST_ID": str(self.first_id),
            "CASEMATE_USERNS_RANGES": "200",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "hostd.log"
        self._addresses = itertools.count(2)
        for place in (self.node / "staging", self.api):
            place.mkdir(parents=True, exist_ok=True)

    def start(
        self, *, module: str = "casemate.hostd.daemon", arguments: tuple[str, ...] = (), **environment: str
    ) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = 20.0) -> Client:
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"hostd ended:\n{self.log.read_text()[-3000:]}"
            try:
                return Client(self.run / "hostd.sock")
            except (FileNotFoundError, ConnectionError):
                # Not there yet, or the connection before was not yet seen to have ended.
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.005)

    def up(self, **environment: str) -> Client:
        self.start(**environment)
        client = self.wait_ready()
        self.stage(client)
        return client

    def stage(self, client: Client) -> str:
        """Have the busybox layer adopted; its digest."""
        path, digest = busybox_layer()
        shutil.copy(path, self.node / "staging" / f"{digest}.sqfs")
        client.call(protocol.LayerAdopt(digest))
        return digest

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def address(self) -> str:
        return self.scope.pool.replace("0/24", str(next(self._addresses)))

    def pod(self, **values: Any) -> PodSpec:
        identity = id_from_bytes(secrets.token_bytes(32))
        network = values.pop("network", None) or NetworkSpec(address=self.address())
        return PodSpec(id=identity, name=f"p-{identity[:8]}", hostname="box", network=network, **values)

    def container(self, pod: PodSpec, *args: str, **values: Any) -> ContainerSpec:
        identity = id_from_bytes(secrets.token_bytes(32))
        process_values = {
            name: values.pop(name) for name in ("terminal", "stdin", "user", "rlimits", "cwd") if name in values
        }
        environment = values.pop("env", ("PATH=/bin",))
        return ContainerSpec(
            id=identity,
            pod=pod.id,
            name=f"c-{identity[:8]}",
            layers=values.pop("layers", (busybox_layer()[1],)),
            process=Process(args=args, env=environment, **process_values),
            resources=values.pop("resources", Resources(pids=128)),
            **values,
        )

    def clean(self) -> list[str]:
        """End the daemon and take away all that it made; what had to be taken away by force."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        forced: list[str] = []
        for one in [one for one in Client.live if one.path == self.run / "hostd.sock"]:
            one.close()  # of a test that failed
        client = self.wait_ready()
        try:
            after = ""
            while True:
                seen = client.call(protocol.Observe(after_pod=after))
                for pod in seen.pods:
                    client.call(protocol.PodRemove(pod.id, force=True))
                after = seen.next_after
                if not after:
                    break
            for finding in client.call(protocol.Prune()).findings:
                if finding.check != "unused layer mount":
                    forced.append(f"{finding.check}: {finding.detail}")
        finally:
            client.close()
        self.stop()
        for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
            place = hierarchy / self.scope.cgroup
            if not hierarchy.is_mount():
                # A plain folder that another engine made beside the hierarchies; runsc makes folders in it too.
                shutil.rmtree(place, ignore_errors=True)
            for one in (place / "probe", place):
                if one.is_dir():
                    one.rmdir()
        nat = Nat(self.scope.table, self.scope.link_prefix, self.scope.pool)
        asyncio.run(nat.remove())
        nat.close()
        subprocess.run(["umount", str(self.run)], capture_output=True, check=False)
        return forced

    def leaks(self) -> set[str]:
        """What is left in the kernel, once it has had its time."""
        deadline = time.monotonic() + 5.0
        while (found := left(self.scope)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return {one for one in found if one.startswith(("mount", "loop", "interface", "nft", "iptables", "cgroup"))}


@contextlib.contextmanager
def running(**settings: str) -> Iterator[Hostd]:
    """A hostd of its own that is started; at the end everything of it must go, and be gone."""
    folder = Path(tempfile.mkdtemp(prefix="cm-hostd-"))
    one = Hostd(new_scope(folder), **settings)
    try:
        one.up().close()
        yield one
    finally:
        try:
            forced = one.clean()
        except BaseException:
            print(one.log.read_text()[-6000:])
            if one.process is not None and one.process.poll() is None:
                one.kill()
            clean(one.scope)
            raise
        found = one.leaks()
        log = one.log.read_text()
        shutil.rmtree(folder, ignore_errors=True)
    assert not forced, f"prune had to remove: {forced}\n{log[-2000:]}"
    assert not found, found
    assert "Traceback" not in log, log[-4000:]
