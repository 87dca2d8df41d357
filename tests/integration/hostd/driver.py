"""A hostd of a test's own: folders, prefixes, a range of ids, and a plain blocking client."""

from __future__ import annotations

import array
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from casemate.hostd import protocol
from casemate.spec.ids import id_from_bytes
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, Resources
from tests.integration.fixtures_rootfs import busybox_layer

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

    def __init__(self, path: Path, *, hello: bool = True, timeout_s: float = 60.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.events: list[Any] = []
        self.fds: list[int] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}
        if hello:
            self.welcome = self.call(protocol.Hello())

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
    """A daemon with everything of its own below *folder*."""

    _used = itertools.count()

    def __init__(self, folder: Path, **settings: str) -> None:
        slot = (os.getpid() * 7 + next(self._used)) % 60
        folder.chmod(0o711)
        self.folder = folder
        self.run = folder / "r"
        self.state = folder / "s"
        self.node = folder / "n"
        self.tag = f"t{secrets.token_hex(2)}"
        self.pool = f"10.2{10 + slot % 40}.{slot}.0/24"
        self.first_id = 2_000_000_000 + slot * 20_000_000
        self.api = folder / "api"
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}",
            "CASEMATE_PATHS_STATE": str(self.node),
            "CASEMATE_PATHS_HOST_STATE": str(self.state),
            "CASEMATE_PATHS_RUN": str(self.api),
            "CASEMATE_PATHS_HOST_RUN": str(self.run),
            "CASEMATE_DAEMON_USER": "root",
            "CASEMATE_NETWORK_POOL": self.pool,
            "CASEMATE_NETWORK_TABLE": f"cm-{self.tag}",
            "CASEMATE_NETWORK_LINK_PREFIX": f"{self.tag}-",
            "CASEMATE_CGROUP_PARENT": f"casemate-{self.tag}",
            "CASEMATE_USERNS_FIRST_ID": str(self.first_id),
            "CASEMATE_USERNS_RANGES": "200",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "hostd.log"
        self._addresses = itertools.count(2)
        for place in (self.node / "staging", self.api):
            place.mkdir(parents=True, exist_ok=True)

    def start(self, *, module: str = "casemate.hostd.daemon", arguments: tuple[str, ...] = (), **environment: str) -> None:
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
            except (FileNotFoundError, ConnectionRefusedError):
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
        return self.pool.replace("0/24", str(next(self._addresses)))

    def pod(self, **values: Any) -> PodSpec:
        identity = id_from_bytes(secrets.token_bytes(32))
        network = values.pop("network", None) or NetworkSpec(address=self.address())
        return PodSpec(id=identity, name=f"p-{identity[:8]}", hostname="box", network=network, **values)

    def container(self, pod: PodSpec, *args: str, **values: Any) -> ContainerSpec:
        identity = id_from_bytes(secrets.token_bytes(32))
        process_values = {name: values.pop(name) for name in ("terminal", "stdin", "user", "rlimits", "cwd") if name in values}
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
            place = hierarchy / f"casemate-{self.tag}"
            for one in (place / "probe", place):
                if one.is_dir():
                    one.rmdir()
        subprocess.run(["nft", "delete", "table", "ip", f"cm-{self.tag}"], capture_output=True, check=False)
        subprocess.run(["umount", str(self.run)], capture_output=True, check=False)
        return forced
