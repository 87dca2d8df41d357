"""The daemons are killed while containers run: nothing in a container notices, and the state is right afterwards."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons, running_daemons
from tests.patience import patience_s
from tests.terminal import until

from casemate.sdk import ApiAway, ApiError
from casemate.spec.api import RestartPolicy

pytestmark = pytest.mark.root

COUNTING = "i=0; while [ $i -lt {n} ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit {code}"


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons() as daemons:
        daemons.import_busybox()
        yield daemons


def counting(n: int, code: int) -> list[str]:
    return ["sh", "-c", COUNTING.format(n=n, code=code)]


def eventually(pair: Daemons, name: str, status: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (seen := pair.client.inspect(name).summary.status) != status:
        assert time.monotonic() < deadline, f"{name} is {seen}, not {status}"
        time.sleep(0.05)


def test_casemated_holds_no_privilege(pair: Daemons) -> None:
    pid = pair.processes["casemated"].pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()


@pytest.mark.parametrize("victims", [("casemated",), ("casemate-hostd",), ("casemated", "casemate-hostd")])
def test_a_container_does_not_notice_a_kill(pair: Daemons, victims: tuple[str, ...]) -> None:
    client = pair.client
    name = f"crash-{len(victims)}-{victims[0][-5:]}"
    created = client.create("busybox", counting(150, 5), name=name)
    read: list[bytes] = []

    def attach() -> None:
        try:
            with client.attach(created.id, start=True) as attached:
                while (piece := attached.read()) is not None:
                    read.append(piece[1])
        except (ApiAway, ApiError):
            return

    reader = threading.Thread(target=attach)
    reader.start()
    time.sleep(0.5)
    execed = threading.Thread(target=lambda: _swallow(lambda: client.exec(name, ["sleep", "1"])))
    execed.start()
    time.sleep(0.3)
    pid = client.inspect(name).pid
    for victim in victims:
        pair.kill(victim)
    assert Path(f"/proc/{pid}").exists()
    pair.start()
    eventually(pair, name, "running", 5)
    assert client.inspect(name).pid == pid
    assert client.wait(name).exit_code == 5
    text = b"".join(data for _, data in client.logs(name))
    assert text == b"".join(b"%d\n" % i for i in range(150))
    reader.join(10)
    execed.join(10)
    client.remove(name)


def _swallow(work) -> None:  # type: ignore[no-untyped-def]
    try:
        work()
    except (ApiAway, ApiError):
        return


@pytest.mark.parametrize("victims", [("casemated",), ("casemated", "casemate-hostd")])
def test_an_end_while_nobody_looked_is_recorded(pair: Daemons, victims: tuple[str, ...]) -> None:
    client = pair.client
    kept = client.create("busybox", ["sh", "-c", "sleep 1; exit 9"], name=f"kept-{len(victims)}")
    gone = client.create("busybox", ["sh", "-c", "sleep 1; exit 3"], name=f"gone-{len(victims)}", auto_remove=True)
    again = client.create("busybox", ["sh", "-c", "sleep 1; exit 4"], name=f"again-{len(victims)}",
                          restart=RestartPolicy("on-failure", 1))  # fmt: skip
    for one in (kept, gone, again):
        client.start(one.id)
    for victim in victims:
        pair.kill(victim)
    time.sleep(1.8)
    pair.start()
    eventually(pair, kept.id, "exited")
    assert client.inspect(kept.id).summary.exit_code == 9
    deadline = time.monotonic() + 10
    while client.containers(f"id={gone.id}", everything=True):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    deadline = time.monotonic() + 10
    while client.inspect(again.id).summary.restarts != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for one in (kept, again):
        client.remove(one.id, force=True)


def test_reads_are_answered_while_hostd_is_away(pair: Daemons) -> None:
    created = pair.client.create("busybox", ["true"])
    pair.kill("casemate-hostd")
    try:
        assert pair.client.version().hostd == "away"
        assert created.id in {row.id for row in pair.client.containers(everything=True)}
        with pytest.raises(ApiError) as error:
            pair.client.start(created.id)
        assert error.value.problem_code == "hostd.unavailable"
        assert error.value.http_status == 503
    finally:
        pair.start()
    eventually(pair, created.id, "created")
    pair.client.start(created.id)
    assert pair.client.wait(created.id).exit_code == 0
    pair.client.remove(created.id)


def test_term_ends_casemated_at_once_even_with_open_streams(pair: Daemons) -> None:
    created = pair.client.create("busybox", counting(500, 0))
    pair.client.start(created.id)
    follower = threading.Thread(target=lambda: _swallow(lambda: list(pair.client.logs(created.id, follow=True))))
    watcher = threading.Thread(target=lambda: _swallow(lambda: list(pair.client.events())))
    waiter = threading.Thread(target=lambda: _swallow(lambda: pair.client.wait(created.id)))
    for thread in (follower, watcher, waiter):
        thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    process = pair.processes["casemated"]
    pair.kill("casemated", signal.SIGTERM)
    assert time.monotonic() - begun < patience_s(5)
    assert process.returncode == 0
    pair.start()
    eventually(pair, created.id, "running")
    pair.client.remove(created.id, force=True)


@pytest.mark.parametrize("victim", ["casemate-hostd", "casemated"])
def test_the_exit_code_of_an_exec_that_ends_while_nobody_looks(pair: Daemons, victim: str) -> None:
    """hostd away: its answer is waited for. casemated away: it learns the end when it is back."""
    client = pair.client
    name = f"lost-{victim}"
    client.create("busybox", ["sleep", "60"], name=name)
    client.start(name)
    ended: list[int] = []

    def go() -> None:
        try:
            ended.append(client.exec(name, ["sh", "-c", "sleep 3; exit 9"]).exit_code)
        except (ApiAway, ApiError, OSError):
            return

    thread = threading.Thread(target=go)
    thread.start()

    def of_exec() -> dict[str, object]:
        (exec_id,) = client.inspect(name).execs or ("",)
        return json.loads(client.transport.ask("GET", f"/v1/exec/{exec_id}")) if exec_id else {}

    until(lambda: bool(of_exec().get("pid")))
    exec_id = of_exec()["id"]
    pair.kill(victim)
    time.sleep(3.2)  # it ends now
    pair.start()
    thread.join(30)
    if victim == "casemate-hostd":
        assert ended == [9]
    until(lambda: json.loads(client.transport.ask("GET", f"/v1/exec/{exec_id}"))["exit_code"] == 9)
    client.remove(name, force=True)
