"""The relay outlives both daemons, under load and in the middle of a hold; and it is a process of next to no right."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pwd
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import SOURCE, USER, ensure_user
from tests.integration.keeping.kept import PORT, Kept, Lines
from tests.integration.policy.world import SHOP

from casemate.hostd import relaying
from casemate.hostd.relaying import RelayProcess
from casemate.node.keeping import wire
from casemate.sdk import ApiAway, ApiError
from casemate.spec.api.policy import PolicyStatus

PATIENCE_S = 60.0


class Load:
    """Connections of *name* that ask again and again, one thread each; each answer is looked at."""

    def __init__(self, kept: Kept, name: str, address: str, count: int = 8) -> None:
        self.over, self.failed, self.done = threading.Event(), list[str](), [0] * count
        self.lines = [Lines(kept.connect(name, address, PORT, PATIENCE_S)) for _ in range(count)]
        self.threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self, place: int) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            try:
                answer = self.lines[place].ask(f"q{number}")
            except (OSError, EOFError) as error:
                self.failed.append(repr(error))
                return
            if answer.line != f"q{number}":
                self.failed.append(f"{answer} for q{number}")
            self.done[place] = number

    def more(self) -> Callable[[], bool]:
        """Whether every connection has had some more answers since now."""
        before = list(self.done)
        return lambda: bool(self.failed) or all(now > then + 5 for now, then in zip(self.done, before, strict=True))

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        for one in self.lines:
            one.close()


def test_a_casemated_that_is_killed_under_load(kept: Kept) -> None:
    """Under a policy that the next one has to have read before it judges what it finds open."""
    address = kept.keep("db", replay=True, app="db")
    kept.run("web", app="web")
    kept.apply(SHOP)
    relay, load = kept.relay_pid(), Load(kept, "web", address)
    try:
        for _ in range(2):
            kept.until(load.more(), "it answers", PATIENCE_S)
            kept.daemons.kill("casemated")
            kept.until(load.more(), "it answers without casemated", PATIENCE_S)
            kept.daemons.start()
            kept.until(lambda: kept.holds().relaying, "the relay is taken over", PATIENCE_S)
            kept.restart("db")
            kept.until(load.more(), "it answers after a restart", PATIENCE_S)
    finally:
        load.end()
    assert not load.failed, load.failed[:5]
    assert kept.relay_pid() == relay


def test_a_casemated_that_is_killed_in_the_middle_of_a_hold(kept: Kept) -> None:
    """Its restart is nobody's any more: the next casemated has what was held go on when the service takes it."""
    address = kept.keep("web", "2500")
    kept.run("one")
    kept.ready("one", address)
    with kept.lines("one", address) as one, concurrent.futures.ThreadPoolExecutor() as pool:
        one.socket.settimeout(PATIENCE_S)
        before = one.ask("a")
        container = kept.client.inspect("web").pid
        restarting = pool.submit(kept.restart, "web", hold_for_s=60)
        kept.until(lambda: kept.client.inspect("web").pid not in (0, container), "it was started anew", PATIENCE_S)
        kept.daemons.kill("casemated")
        with pytest.raises((ApiAway, ApiError, OSError)):
            restarting.result()
        kept.daemons.start()
        assert one.ask("b").start > before.start
        kept.until(
            lambda: not kept.ask("GET", "/v1/policy/status", kind=PolicyStatus).holds,
            "nothing is held any more",
            PATIENCE_S,
        )


def test_a_relay_of_another_version_is_replaced(kept: Kept) -> None:
    """An upgrade that changes the messages: what was open is reset and not left in silence, what follows is kept."""
    daemons = kept.daemons
    other = daemons.scope.folder / "other"
    shutil.copytree(SOURCE, other, ignore=shutil.ignore_patterns("__pycache__"))
    words = other / "casemate/node/keeping/wire.py"
    words.write_text(words.read_text().replace(f"\nVERSION = {wire.VERSION}\n", f"\nVERSION = {wire.VERSION + 1}\n"))
    environment = dict(daemons.environment)
    try:
        daemons.kill("casemated")
        daemons.kill("casemate-hostd")
        daemons.environment["PYTHONPATH"] = str(other)
        daemons.start()
        address = kept.keep("web")
        kept.run("one")
        kept.ready("one", address)
        relay = kept.relay_pid()
        with kept.lines("one", address) as open_:
            open_.ask("before")
            daemons.kill("casemated")
            daemons.kill("casemate-hostd")
            daemons.environment["PYTHONPATH"] = environment["PYTHONPATH"]
            daemons.start()
            assert open_.is_reset(PATIENCE_S)
        kept.until(lambda: kept.holds().relaying, "there is a relay again", PATIENCE_S)
        assert kept.relay_pid() != relay
        kept.ready("one", address)
        with kept.lines("one", address) as open_:
            before = open_.ask("before")
            kept.restart("web")
            assert open_.ask("after").start > before.start
    finally:
        daemons.environment |= environment
        shutil.rmtree(other)


# --- the process ----------------------------------------------------------------------------------------------------


class Patient(RelayProcess):
    """Waits long for a relay that starts on a busy machine, and not for the one that is known to hang."""

    site: Site

    @property
    def patience_s(self) -> float:  # type: ignore[override]
        return 0.5 if self.site.pid() == self.site.hanging else PATIENCE_S


class Site:
    """Relay processes at one path, without a node around them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "relay.sock"
        self.uid = pwd.getpwnam(USER).pw_uid
        self.made: list[RelayProcess] = []
        self.hanging = -1

    def hostd(self) -> RelayProcess:
        one = Patient(self.path, self.uid)
        one.site = self
        self.made.append(one)
        return one

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid()}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines)

    def pid(self) -> int:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if words[-3:-1] == [relaying.MODULE.encode(), str(self.path).encode()]:
                    return int(entry.name)
        return 0


@pytest.fixture
def in_loop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Site], Coroutine[Any, Any, None]]], None]:
    """Run a coroutine of a :class:`Site`; no relay may be left afterwards."""
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    ensure_user()

    def run(work: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
        site = Site(tmp_path_factory.mktemp("relay"))

        async def whole() -> None:
            try:
                await work(site)
            finally:
                for one in site.made:
                    one.hang_up()

        asyncio.run(whole())
        # Nobody is left to work for: it ends by itself.
        deadline = time.monotonic() + PATIENCE_S
        while site.pid() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not site.pid()

    return run


def _hello(descriptor: int) -> wire.Hello:
    with socket.socket(fileno=descriptor) as one:
        one.settimeout(PATIENCE_S)
        message = wire.FROM_RELAY.decode(one.recv(wire.MAX_MESSAGE_BYTES))
        assert isinstance(message, wire.Hello)
        return message


InLoop = Callable[[Callable[[Site], Coroutine[Any, Any, None]]], None]


def test_it_is_found_again_and_has_no_right(in_loop: InLoop) -> None:
    async def work(site: Site) -> None:
        first = site.hostd()
        assert not first.reach(), "none runs"
        assert _hello(await first.attach()) == wire.Hello(wire.VERSION)
        pid = site.pid()
        status = site.status()
        assert set(status["Uid"].split()) == {str(site.uid)}
        assert status["Groups"].strip() == ""
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert site.path.stat().st_mode & 0o777 == 0o600, "root alone finds it"
        # That hostd died; another one comes.
        first.hang_up()
        second = site.hostd()
        assert second.reach()
        assert _hello(await second.attach()) == wire.Hello(wire.VERSION)
        assert site.pid() == pid

    in_loop(work)


def test_one_that_hangs_or_is_of_another_version_is_replaced(in_loop: InLoop) -> None:
    async def work(site: Site) -> None:
        hostd = site.hostd()
        os.close(await hostd.attach())
        first = site.pid()
        os.close(await hostd.attach(anew=True))
        second = site.pid()
        assert second not in (0, first)
        os.kill(second, signal.SIGSTOP)
        site.hanging = second
        os.close(await hostd.attach())
        assert site.pid() not in (0, second)

    in_loop(work)
