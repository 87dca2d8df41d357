"""From a document to the packet and back: both daemons, the real kernel, real connections."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import threading
import time

import pytest
from tests.integration.policy.world import SHOP, World
from tests.patience import patience_s

from casemate.sdk import ApiError
from casemate.spec.api import RestartRequest
from casemate.spec.api import policy as schema

PORT = 7000
BANKS = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: banks}
spec:
  tier: operator
  segments:
    a: {select: {matchLabels: {bank: a}}}
    b: {select: {matchLabels: {bank: b}}}
  walls: [{name: banks, members: {a: [{segment: a}], b: [{segment: b}]}}]
"""
ASK = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: ask}
spec:
  segments: {asker: {select: {matchLabels: {app: asker}}, default: {egress: refer}}}
  rules:
    - {from: [{segment: asker}], to: any, ports: [tcp/7001], action: allow, when: 'destination.labels.app == "db"'}
"""


def test_a_document_opens_and_closes(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    world.run("web", app="web")
    world.run("other", app="other")
    assert world.dial("other", db, PORT) == "yes", "without a document every pod reaches every other"
    assert world.apply(SHOP).enforced
    assert world.dial("web", db, PORT) == "yes"
    assert world.dial("other", db, PORT) in ("refused", "silent")
    assert world.dial("web", db, PORT + 1) in ("refused", "silent")
    for source, word in (("web", "allow"), ("other", "deny")):
        assert world.explain(source, "db", f"tcp/{PORT}").verdict == word
    world.run("web2", app="web")
    assert world.dial("web2", db, PORT) == "yes", "a pod that starts under policy has its identity at once"
    assert world.identity("web2") == world.identity("web") != world.identity("other")


def test_an_open_connection_ends_with_its_right(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    world.run("web", app="web")
    world.apply(SHOP)
    with world.connect("web", db, PORT) as cut:
        assert cut.recv(4) == b"yes\n"
        world.apply(SHOP.replace("tcp/7000", "tcp/7999"))
        began = time.monotonic()
        assert _dies(cut), "the connection outlives its right"
        assert time.monotonic() - began < patience_s(5)


def _dies(connection: socket.socket) -> bool:
    """Whether what is sent on *connection* is answered by a reset."""
    connection.settimeout(1.0)
    for _ in range(50):
        try:
            connection.send(b"x")
            time.sleep(0.05)
        except OSError:
            return True
    return False


def test_quarantine_at_once_and_release(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    web = world.serve("web", PORT, app="web")
    world.run("admin", app="admin")
    with world.connect("web", db, PORT) as cut:
        cut.recv(4)
        row = world.ask(
            "POST", "/v1/quarantines",
            schema.QuarantineRequest("web", allow=(schema.QuarantineAllow("admin", (f"tcp/{PORT}",), "from"),),
                                     reason="scans"),
            schema.QuarantineRow,
        )  # fmt: skip
        assert _dies(cut)
    assert row.cause == "person"
    assert world.dial("web", db, PORT) in ("refused", "silent")
    assert world.dial("db", web, PORT) in ("refused", "silent")
    assert world.dial("admin", web, PORT) == "yes"
    # It goes by the name: a restart does not end it.
    world.ask("POST", "/v1/containers/web/restart", RestartRequest(timeout=1), project="default")
    world.seen("web")
    assert world.dial("web", db, PORT) in ("refused", "silent")
    world.ask("POST", "/v1/quarantines/release", schema.ReleaseRequest("web", "rebuilt"))
    assert world.dial("web", db, PORT) == "yes"


def test_a_rule_decides_and_a_person(world: World) -> None:
    """One prompt waits; what rules decide goes on beside it."""
    db = world.serve("db", PORT + 1, app="db")
    other = world.serve("other", PORT, app="other")
    world.run("asker", app="asker")
    world.apply(ASK)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(world.dial, "asker", other, PORT, 15.0)
        world.until(lambda: len(world.referrals().waiting) == 1, "a person is asked")
        for _ in range(5):
            assert world.dial("asker", db, PORT + 1) == "yes"
        assert not waiting.done()
        row = world.referrals().waiting[0]
        assert (row.source, row.destination, row.port) == ("default/asker", "default/other", PORT)
        answer = schema.ReferralAnswer(allow=True, for_s=60, reason="deploy")
        world.ask("POST", f"/v1/referrals/{row.number}", answer, schema.ReferralRow)
        assert waiting.result() == "yes"
    assert world.dial("asker", other, PORT) == "yes", "the answer is kept for the next one"
    world.ask("DELETE", f"/v1/referrals/{row.number}", kind=schema.ReferralRow)
    began = time.monotonic()
    assert world.dial("asker", other, PORT, 20.0) in ("refused", "silent"), "forgotten: asked again, and nobody answers"
    assert time.monotonic() - began < patience_s(20)
    world.until(lambda: world.referrals().counters.get("deadline", 0) >= 1, "the deadline is counted")
    decided = [one for one in world.referrals().decided if one.by == "deadline"]
    assert decided
    assert decided[0].answer == "deny"


def test_a_wall_binds_before_the_first_packet(world: World) -> None:
    a = world.serve("a", PORT, bank="a")
    b = world.serve("b", PORT, bank="b")
    world.run("analyst", role="analyst")
    applied = world.apply(BANKS)
    assert not applied.crossings, "one analyst: its history holds it to one of them"
    assert applied.outside, "both may reach the outside: named"
    assert world.dial("a", b, PORT) in ("refused", "silent")
    assert world.dial("analyst", a, PORT) == "yes"
    assert world.dial("analyst", b, PORT) in ("refused", "silent")
    # Killed, started anew: what was reached is known, and no cached answer opens the other.
    world.daemons.kill("casemated")
    world.daemons.start()
    world.until(lambda: world.documents().state.enforced, "the policy is in the kernel again")
    assert world.dial("analyst", b, PORT) in ("refused", "silent")
    assert world.dial("analyst", a, PORT) == "yes"
    # A new container under the same name, with other labels, inherits the history.
    world.client.remove("analyst", force=True)
    world.run("analyst", role="someone-else")
    assert world.dial("analyst", b, PORT) in ("refused", "silent")
    with world.connect("analyst", a, PORT) as old:
        assert old.recv(4) == b"yes\n"
        world.ask("POST", "/v1/walls/release", schema.WallRelease("banks", "analyst", "engagement ended"))
        assert _dies(old), "released from a: what was open to it ends"
    assert world.dial("analyst", b, PORT) == "yes"
    assert world.dial("analyst", a, PORT) in ("refused", "silent")
    report = world.ask("GET", "/v1/walls/report", kind=schema.WallReport)
    assert report.intact
    assert [entry.kind for entry in report.entries][:2] == ["reached", "refused"]
    assert "released" in [entry.kind for entry in report.entries]


def test_what_was_killed_forbids_what_it_forbade(world: World) -> None:
    """casemated is away: referrals are denied, what was decided holds, open connections live. hostd too."""
    db = world.serve("db", PORT, app="db")
    world.serve("other", PORT, app="other")
    world.run("web", app="web")
    world.run("asker", app="asker")
    world.apply(SHOP + "---" + ASK)
    with world.connect("web", db, PORT) as living:
        assert living.recv(4) == b"yes\n"
        world.daemons.kill("casemated")
        assert world.dial("web", db, PORT) == "yes"
        assert world.dial("other", db, PORT, 2.0) in ("refused", "silent")
        assert world.dial("asker", world.addresses["other"], PORT, 3.0) in ("refused", "silent")
        world.daemons.kill("casemate-hostd")
        assert world.dial("web", db, PORT) == "yes"
        assert world.dial("other", db, PORT, 2.0) in ("refused", "silent")
        world.daemons.start()
        world.until(lambda: world.documents().state.enforced, "the policy is in the kernel again")
        assert world.dial("web", db, PORT) == "yes"
        assert world.dial("other", db, PORT, 2.0) in ("refused", "silent")
        living.send(b"x")
        time.sleep(0.1)
        living.send(b"x")


def test_restart_with_hold_under_load(world: World) -> None:
    """Two clients at full rate, five restarts: no connection fails."""
    address = world.serve("web", PORT, app="web")
    clients = ("one", "two")
    for name in clients:
        world.run(name)
    over = threading.Event()
    done = dict.fromkeys(clients, 0)
    failed: list[str] = []

    def load(name: str) -> None:
        def work() -> None:
            while not over.is_set():
                try:
                    with socket.create_connection((address, PORT), 15.0) as one:
                        word = one.recv(4)
                    if word != b"yes\n":
                        failed.append(f"{name}: {word!r}")
                except OSError as error:
                    failed.append(f"{name}: {error}")
                done[name] += 1

        world.inside(name, work)

    threads = [threading.Thread(target=load, args=(name,)) for name in clients]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = sum(done.values())
            world.ask("POST", "/v1/containers/web/restart", RestartRequest(timeout=5, hold=True), project="default")
            world.until(lambda before=before: sum(done.values()) > before + 20, "the load goes on")  # type: ignore[misc]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed, (len(failed), sum(done.values()), failed[:5])
    assert all(count > 50 for count in done.values()), done


def test_a_hold_that_cannot_be_kept_ends_in_a_reset(world: World) -> None:
    world.serve("web", PORT, app="web")
    world.run("one")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        request = RestartRequest(timeout=1, hold=True, hold_for_s=3, hold_ports=(9,))

        def restart() -> None:
            world.ask("POST", "/v1/containers/web/restart", request, project="default")

        restarting = pool.submit(restart)
        world.until(lambda: world.client.inspect("web").summary.status != "running", "it stops")
        began = time.monotonic()
        assert world.dial("one", world.addresses["web"], PORT, 15.0) in ("refused", "silent")
        assert time.monotonic() - began < patience_s(10), "a reset, not a silence"
        with pytest.raises(ApiError) as caught:
            restarting.result()
        assert caught.value.problem["code"] == "operation.timed_out"
    world.seen("web")
    assert world.dial("one", world.addresses["web"], PORT) == "yes", "it runs on"


def test_a_daemon_that_ends_in_order_leaves_the_policy(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    world.run("other", app="other")
    world.apply(SHOP)
    world.daemons.kill("casemated", signal.SIGTERM)
    world.daemons.kill("casemate-hostd", signal.SIGTERM)
    assert world.dial("other", db, PORT, 2.0) in ("refused", "silent")
    world.daemons.start()


SCAN = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: scans}
spec:
  tier: operator
  segments: {all: {select: {}}}
  quarantine:
    - {name: port-scan, when: "ports >= 20", for: 600, reason: aims at many ports}
"""


def test_a_port_scan_ends_in_quarantine(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    world.run("scanner", app="scanner")
    world.run("quiet", app="quiet")
    world.apply(SCAN)
    world.until(lambda: world.documents().state.enforced, "the rule is in force")
    assert world.dial("quiet", db, PORT) == "yes"

    def held() -> tuple[schema.QuarantineRow, ...]:
        return world.ask("GET", "/v1/quarantines", kind=schema.QuarantineList).quarantines

    def scan() -> bool:
        for port in range(8000, 8030):
            world.dial("scanner", db, port, 0.2)
        return bool(held())

    # Daemons that were killed in a test before may be starting the recorder of flows still.
    world.until(scan, "the scanner is cut off", 30.0)
    row = held()[0]
    assert row.workload == "default/scanner"
    assert row.cause == "rule Policy/scans:quarantine[port-scan]"
    assert "ports 2" in row.reason
    # It is on record before it is in the kernel, a moment later.
    world.until(lambda: world.dial("scanner", db, PORT, 2.0) in ("refused", "silent"), "the kernel has it", 5.0)
    assert world.dial("quiet", db, PORT) == "yes"


def test_a_rule_that_turns_takes_back_what_it_let_pass(world: World) -> None:
    """An answer that the kernel keeps for five minutes does not outlive the rule that gave it."""
    db = world.serve("db", PORT + 1, app="db")
    world.run("asker", app="asker")
    world.apply(ASK)
    with world.connect("asker", db, PORT + 1) as living:
        assert living.recv(4) == b"yes\n"
        world.apply(ASK.replace('== "db"', '== "other"').replace("egress: refer", "egress: deny"))
        assert _dies(living)
    assert world.dial("asker", db, PORT + 1) in ("refused", "silent")
