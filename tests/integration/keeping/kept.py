"""A world (see :mod:`tests.integration.policy.world`) with services whose ports are kept."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.policy.world import World

from casemate.spec.api import RestartRequest
from casemate.spec.api.fields import NetworkRequest, PortRequest
from casemate.spec.api.keeping import HoldList
from casemate.spec.workload import KeptPort, Level

PORT = 7000


@dataclass
class Answer:
    """``START PEER LINE`` of the service: when it began, whom it sees, what it was asked."""

    start: int
    peer: str
    line: str


class Lines:
    """A connection to the service."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one
        self.name = "{}:{}".format(*one.getsockname())
        self._have = b""

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode() + b"\n")

    def receive(self) -> Answer:
        while b"\n" not in self._have:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the end, after {self._have!r}")
            self._have += data
        line, _, self._have = self._have.partition(b"\n")
        start, peer, text = line.decode().split(" ", 2)
        return Answer(int(start), peer, text)

    def ask(self, text: str) -> Answer:
        self.send(text)
        return self.receive()

    def is_reset(self, within_s: float) -> bool:
        """Whether the connection is reset within that time; an end that is none, or silence, is not."""
        self.socket.settimeout(within_s)
        try:
            data = self.socket.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        raise AssertionError(f"not reset: {data!r}")

    def close(self) -> None:
        self.socket.close()


class Kept(World):
    """Services with kept ports; *image* has the program in it."""

    image = "busybox"

    def keep(
        self, name: str, *more: str, replay: bool = False, published: int = 0, level: Level | None = None, **labels: str
    ) -> str:
        """Start the service, its port kept; its address."""
        ports = (PortRequest(PORT, published),) if published else ()
        network = NetworkRequest(kept=(KeptPort(PORT, replay),), ports=ports)
        command = ("/data/lines", str(PORT), *more)
        self.client.create(self.image, command, name=name, network=network, labels=labels, level=level)
        self.client.start(name)
        address = self.seen(name)
        self.until(lambda: self.holds().relaying, "the relay runs")
        return address

    def ready(self, client: str, address: str) -> None:
        """Wait until the service answers *client*."""

        def answers() -> bool:
            with contextlib.suppress(OSError, EOFError), self.lines(client, address) as one:
                return bool(one.ask("ready").start)
            return False

        self.until(answers, f"{address} answers")

    @contextlib.contextmanager
    def lines(self, client: str, address: str, port: int = PORT) -> Iterator[Lines]:
        one = Lines(self.connect(client, address, port))
        try:
            yield one
        finally:
            one.close()

    def restart(self, name: str, **fields: object) -> None:
        """``restart --hold connections``."""
        request = RestartRequest(**{"timeout": 2, "hold": True, "hold_open": True, **fields})  # type: ignore[arg-type]
        self.ask("POST", f"/v1/containers/{name}/restart", request, project="default")

    def holds(self) -> HoldList:
        return self.ask("GET", "/v1/holds", kind=HoldList)

    @contextlib.contextmanager
    def outside(self) -> Iterator[tuple[str, str]]:
        """A machine beside this host: its name for :meth:`connect`, and the host's address on the way to it."""
        name = f"x{self.daemons.scope.link_prefix.strip('-')}"
        low = 4 * (int.from_bytes(os.urandom(1), "big") // 4)
        host, machine = f"203.0.113.{low + 1}", f"203.0.113.{low + 2}"
        with subprocess.Popen(["unshare", "-n", "sleep", "300"]) as process:
            try:
                here = os.stat("/proc/self/ns/net").st_ino
                self.until(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != here, "a namespace")
                inside = f"nsenter -t {process.pid} -n ip"
                for command in (
                    f"ip link add {name} type veth peer name eth0 netns {process.pid}",
                    f"ip addr add {host}/30 dev {name}", f"ip link set {name} up",
                    f"{inside} addr add {machine}/30 dev eth0", f"{inside} link set eth0 up",
                ):  # fmt: skip
                    subprocess.run(command.split(), check=True, timeout=20)
                self.pids["outside"] = process.pid
                yield "outside", host
            finally:
                process.kill()
                subprocess.run(["ip", "link", "del", name], check=False, capture_output=True, timeout=20)

    def relay_pid(self) -> int:
        """The relay of these daemons, whoever started it: the process that was given their socket's path."""
        wanted = [b"casemate.node.keeping.child", str(self.daemons.scope.folder / "host-run/relay.sock").encode()]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if (entry / "cmdline").read_bytes().split(b"\0")[-3:-1] == wanted:
                        return int(entry.name)
        raise AssertionError("no relay runs")
