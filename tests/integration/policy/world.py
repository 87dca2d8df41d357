"""Pods of a pair of daemons that talk to each other: containers with labels, and sockets made inside their networks."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from tests.integration.daemons import Daemons, rootfs_tar

from casemate.host.syscalls import setns
from casemate.sdk import ApiError, Client
from casemate.spec.api import policy as schema

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
#: Who is called web may reach who is called db at 7000, and nobody else.
SHOP = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop}
spec:
  segments:
    web: {select: {matchLabels: {app: web}}}
    db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}
  rules:
    - {from: [{segment: web}], to: [{segment: db}], ports: [tcp/7000], action: allow}
"""
#: A server that says a line to each connection; on TERM it first serves whoever is in its queue.
SERVER = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile sig_atomic_t over;
static void end(int n) { (void)n; over = 1; }
int main(int argc, char **argv) {
    struct sigaction act = {.sa_handler = end};
    sigaction(SIGTERM, &act, 0);
    signal(SIGPIPE, SIG_IGN);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 7000)};
    if (bind(s, (void *)&a, sizeof a) || listen(s, 4096)) return 1;
    int quiet = 0;
    for (;;) {
        struct pollfd p = {s, POLLIN, 0};
        poll(&p, 1, over ? 50 : 1000);
        int c = accept(s, 0, 0);
        if (c < 0) {
            while (waitpid(-1, 0, WNOHANG) > 0);
            if (over && ++quiet > 2) break;
            continue;
        }
        quiet = 0;
        if (!fork()) {
            char b[64];
            fcntl(c, F_SETFL, 0);
            if (write(c, "yes\n", 4) > 0) while (read(c, b, sizeof b) > 0);
            _exit(0);
        }
        close(c);
    }
    while (wait(0) > 0);
    return 0;
}
"""


class World:
    """Containers on *daemons*, removed at the end with every document and quarantine."""

    def __init__(self, daemons: Daemons) -> None:
        self.daemons = daemons
        self.client: Client = daemons.client
        self.pids: dict[str, int] = {}
        self.addresses: dict[str, str] = {}

    # --- containers -----------------------------------------------------------------------------------------------

    def run(self, name: str, *command: str, project: str = "default", **labels: str) -> str:
        """Start a container; its address."""
        self.client.create("busybox", command or ("sleep", "1000"), name=name, labels=labels)
        self.client.start(name)
        return self.seen(name)

    def serve(self, name: str, port: int, **labels: str) -> str:
        """A container with the server of this module at *port*; its address."""
        self.client.create("busybox", ("/data/server", str(port)), name=name, labels=labels)
        self.client.start(name)
        address = self.seen(name)
        self.until(lambda: self.dial(name, "127.0.0.1", port) == "yes", f"{name} serves")
        return address

    def seen(self, name: str) -> str:
        detail = self.client.inspect(name)
        self.pids[name], self.addresses[name] = detail.pid, detail.summary.address
        return detail.summary.address

    def identity(self, name: str) -> int:
        return self.client.inspect(name).summary.identity

    # --- connections ----------------------------------------------------------------------------------------------

    def inside(self, name: str, work: Callable[[], T]) -> T:
        """*work* in a thread that is in the network of the pod of *name*; sockets made there stay there."""
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                number = os.open(f"/proc/{self.pids[name]}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    setns(number, CLONE_NEWNET)
                finally:
                    os.close(number)
                found.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def connect(self, name: str, address: str, port: int, timeout_s: float = 5.0) -> socket.socket:
        """A connection out of the pod of *name*; the caller closes it."""

        def work() -> socket.socket:
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            one.settimeout(timeout_s)
            try:
                one.connect((address, port))
            except BaseException:
                one.close()
                raise
            return one

        return self.inside(name, work)

    def dial(self, name: str, address: str, port: int, timeout_s: float = 5.0) -> str:
        """``yes`` (the server's word), ``open``, ``refused``, ``silent``."""
        try:
            with self.connect(name, address, port, timeout_s) as one:
                return one.recv(64).decode().strip() or "open"
        except ConnectionRefusedError:
            return "refused"
        except (TimeoutError, ConnectionResetError, OSError):
            return "silent"

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.02)

    # --- policy ---------------------------------------------------------------------------------------------------

    def apply(self, text: str, **query: Any) -> schema.PolicyApplied:
        pairs = [(key, str(value).lower()) for key, value in query.items()]
        with self.client.transport.send("POST", "/v1/policy/documents", pairs, iter([text.encode()])) as response:
            return msgspec.json.decode(response.read(), type=schema.PolicyApplied)

    def ask(self, method: str, path: str, body: object = None, kind: type[T] | None = None, **query: Any) -> T:
        pairs = [(key, str(value).lower()) for key, value in query.items()]
        data = None if body is None else msgspec.json.encode(body)
        answer = self.client.transport.ask(method, path, pairs, data)
        return msgspec.json.decode(answer, type=kind) if kind is not None else None  # type: ignore[return-value]

    def documents(self) -> schema.PolicyList:
        return self.ask("GET", "/v1/policy/documents", kind=schema.PolicyList)

    def ask_text(self, key: str) -> str:
        """A document of the store as YAML."""
        return self.ask("GET", "/v1/policy/document", kind=schema.PolicyDetail, key=key).text

    def referrals(self) -> schema.ReferralList:
        return self.ask("GET", "/v1/referrals", kind=schema.ReferralList, limit=100)

    def explain(self, source: str, destination: str, port: str) -> schema.ExplainAnswer:
        return self.ask("POST", "/v1/policy/explain", schema.ExplainRequest(source, destination, port),
                        schema.ExplainAnswer)  # fmt: skip

    def close(self) -> None:
        self.daemons.start()
        for row in self.client.containers(everything=True):
            with contextlib.suppress(ApiError):
                self.client.remove(row.id, force=True, volumes=True)
        for held in self.ask("GET", "/v1/quarantines", kind=schema.QuarantineList).quarantines:
            self.ask("POST", "/v1/quarantines/release", schema.ReleaseRequest(held.workload, "the test is over"))
        keys = [("key", row.key) for row in self.documents().documents]
        if keys:
            self.client.transport.ask("DELETE", "/v1/policy/documents", keys)


def import_image(daemons: Daemons) -> None:
    """The image ``busybox`` with the server in it, as /data/server."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("missing: cc")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "server.c", Path(folder) / "server"
        source.write_text(SERVER)
        subprocess.run([compiler, "-static", "-O1", "-o", str(program), str(source)], check=True, timeout=60)
        data = program.read_bytes()
    out = io.BytesIO(rootfs_tar())
    with tarfile.open(fileobj=out, mode="a") as tar:
        info = tarfile.TarInfo("data/server")
        info.size, info.mode = len(data), 0o755
        tar.addfile(info, io.BytesIO(data))
    client = daemons.client
    ended = client.follow(client.import_image(iter([out.getvalue()]), tag="busybox", format_="rootfs"))
    assert ended.status == "done", ended


@contextlib.contextmanager
def world_of(daemons: Daemons) -> Iterator[World]:
    world = World(daemons)
    try:
        yield world
    finally:
        world.close()
