"""Connections that outlive a restart: both daemons, the relay, the real kernel, real connections."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.integration.keeping.kept import PORT, Kept, Lines
from tests.integration.policy.world import SHOP
from tests.patience import patience_s

from casemate.sdk import ApiError
from casemate.spec.api import policy as schema

ASK = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: ask}
spec:
  segments: {asker: {select: {matchLabels: {app: asker}}, default: {egress: refer}}}
  rules:
    - {from: [{segment: asker}], to: any, ports: [tcp/7000], action: allow, when: 'destination.labels.app == "db"'}
"""


def test_open_connections_go_on_with_the_next_process(kept: Kept) -> None:
    address = kept.keep("web")
    kept.run("one")
    with kept.lines("one", address) as open_, kept.lines("one", address) as silent:
        before = open_.ask("first")
        assert before.peer == open_.name, "the service sees the client's own address and port"
        kept.restart("web")
        after, other = open_.ask("second"), silent.ask("third")
        assert after.start == other.start > before.start, "another process answers on the same connection"
        assert (after.peer, other.peer) == (open_.name, silent.name)
        kept.restart("web")
        assert open_.ask("again").start > after.start
    kept.until(lambda: kept.holds().counters.resumed == 4, "two connections went on twice, and are counted")
    assert kept.holds().ports[0].open == 0


def test_what_was_not_answered_is_asked_again_only_where_that_is_safe(kept: Kept) -> None:
    """Killed in the middle of an answer: the one port is declared safe for it, the other is not."""
    addresses = {"safe": kept.keep("safe", replay=True), "once": kept.keep("once")}
    kept.run("one")
    with kept.lines("one", addresses["safe"]) as safe, kept.lines("one", addresses["once"]) as once:
        before = safe.ask("before")
        once.ask("before")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for one, name in ((safe, "safe"), (once, "once")):
                one.send("slow 1000")
                pool.submit(kept.restart, name, timeout=0, hold_drain_s=0).result()
            answer = safe.receive()
        assert answer.line == "slow 1000"
        assert answer.start > before.start
        assert once.is_reset(5), "what may have been done is not done again: a reset, and no silence"
    kept.until(lambda: kept.holds().counters.replayed == 1, "it is counted")


def test_answers_come_to_their_end_before_the_stop(kept: Kept) -> None:
    address = kept.keep("web")
    kept.run("one")
    with kept.lines("one", address) as busy:
        before = busy.ask("before")
        busy.send("slow 700")
        kept.restart("web", timeout=0)
        assert busy.receive().start == before.start, "the process that was asked has answered"
        assert busy.ask("after").start > before.start


def test_a_bound_that_is_passed_ends_in_a_reset(kept: Kept) -> None:
    """The service takes longer to come up than it is held for."""
    address = kept.keep("web", "2500")
    kept.run("one")
    kept.ready("one", address)
    with kept.lines("one", address) as one, concurrent.futures.ThreadPoolExecutor() as pool:
        one.ask("before")
        began = time.monotonic()
        restarting = pool.submit(kept.restart, "web", hold_for_s=2)
        kept.until(lambda: kept.holds().ports[0].held == 1, "the state shows it")
        row = kept.holds().ports[0]
        assert (row.workload, row.open) == ("web", 1)
        assert 0 < row.left_s <= 2
        with pytest.raises(ApiError) as caught:
            restarting.result()
        assert caught.value.problem["code"] == "operation.timed_out"
        assert one.is_reset(patience_s(2))
        assert time.monotonic() - began < patience_s(6)
    kept.until(lambda: kept.holds().ports[0].left_s == 0, "nothing is held any more")


def test_beyond_the_count_connections_are_reset(kept: Kept) -> None:
    address = kept.keep("web")
    kept.run("one")
    with kept.lines("one", address) as one, kept.lines("one", address) as other:
        one.ask("a")
        other.ask("b")
        kept.restart("web", hold_connections=1)
        living = [line for line in (one, other) if not _ended(line)]
        assert len(living) == 1
        assert living[0].ask("c").line == "c"


def _ended(one: Lines) -> bool:
    try:
        return one.is_reset(0.5)
    except AssertionError:
        return True


def test_nothing_is_held_for_a_quarantined_pod(kept: Kept) -> None:
    address = kept.keep("web")
    kept.run("one")
    kept.run("plain")
    with kept.lines("one", address) as one:
        one.ask("a")
        began = time.monotonic()
        kept.ask("POST", "/v1/quarantines", schema.QuarantineRequest("web", reason="odd"), schema.QuarantineRow)
        assert one.is_reset(patience_s(2)), "cut, though it said nothing"
        assert time.monotonic() - began < patience_s(2)
    with pytest.raises(ApiError) as caught:
        kept.restart("web")
    assert caught.value.problem["code"] == "pod.hold_unavailable"
    assert "quarantine" in str(caught.value)
    with pytest.raises(ApiError) as caught:
        kept.restart("plain")
    assert "keeps no port" in str(caught.value)


def test_a_quarantine_ends_what_is_held(kept: Kept) -> None:
    """It comes while connections wait: they are reset at once, and not when the pod is ready."""
    address = kept.keep("web", "1500")
    kept.run("one")
    kept.ready("one", address)
    with kept.lines("one", address) as one, concurrent.futures.ThreadPoolExecutor() as pool:
        one.ask("a")
        restarting = pool.submit(kept.restart, "web", hold_for_s=20)
        kept.until(lambda: kept.holds().ports[0].held == 1, "it is held")
        began = time.monotonic()
        kept.ask("POST", "/v1/quarantines", schema.QuarantineRequest("web", reason="odd"), schema.QuarantineRow)
        assert one.is_reset(patience_s(2))
        assert time.monotonic() - began < patience_s(1.5)
        restarting.result()


def test_a_sandbox_with_a_network_stack_of_its_own(kept: Kept) -> None:
    """It ends without a word to anybody, and the host's tables do not show when it listens again."""
    if shutil.which("runsc") is None:
        pytest.skip("missing: runsc")
    address = kept.keep("web", level="gvisor")
    kept.run("one")
    kept.ready("one", address)
    with kept.lines("one", address) as one:
        before = one.ask("a")
        kept.restart("web")
        assert one.ask("b").start > before.start


def test_who_may_not_never_reaches_the_relay(kept: Kept) -> None:
    """The firewall judges as without it; a mark that a pod sets does not lead past."""
    address = kept.keep("db", app="db")
    kept.run("web", app="web")
    kept.run("other", app="other")
    assert kept.apply(SHOP).enforced
    with kept.lines("web", address) as one:
        assert one.ask("a").peer == one.name
        kept.until(lambda: kept.holds().ports[0].open == 1, "the relay has it")
        before = kept.holds().counters.accepted
        marks = [0x0CA5E001, *(0x0C000000 | number << 4 | low for number in range(0, 65536, 4096) for low in range(5))]
        from casemate.network.firewall.kept import marks as ours  # noqa: PLC0415 - the test's own forgery

        for mark in (0, *ours(kept.daemons.scope.table), *marks[:3]):
            assert _dial_marked(kept, "other", address, mark) in ("refused", "silent"), hex(mark)
        time.sleep(1.1)
        assert kept.holds().counters.accepted == before
        assert one.ask("b").line == "b"


def _dial_marked(kept: Kept, name: str, address: str, mark: int) -> str:
    def work() -> str:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, 36, mark)
            one.settimeout(1.0)
            try:
                one.connect((address, PORT))
                return "open"
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return "silent"

    return kept.inside(name, work)


def test_a_right_that_ends_ends_both_sides(kept: Kept) -> None:
    """A policy that tightens cuts idle connections too, within a second; the service is told."""
    address = kept.keep("db", app="db")
    kept.run("web", app="web")
    kept.apply(SHOP)
    with kept.lines("web", address) as one:
        one.ask("a")
        began = time.monotonic()
        kept.apply(SHOP.replace("tcp/7000", "tcp/7999"))
        assert one.is_reset(patience_s(2))
        assert time.monotonic() - began < patience_s(2)
        kept.until(lambda: kept.holds().ports[0].open == 0, "the relay has let go of it")
    assert kept.dial("web", address, PORT) in ("refused", "silent")


def test_a_referred_connection_goes_through_the_relay(kept: Kept) -> None:
    address = kept.keep("db", app="db")
    kept.run("asker", app="asker")
    kept.apply(ASK)
    with kept.lines("asker", address) as one:
        before = one.ask("a")
        assert before.peer == one.name
        kept.restart("db")
        assert one.ask("b").start > before.start


def test_a_published_port_is_kept_too(kept: Kept) -> None:
    """From another machine, by the host's address; and from the pod itself, which goes straight."""
    published = 20_000 + int.from_bytes(os.urandom(2), "big") % 10_000
    address = kept.keep("web", published=published)
    with kept.outside() as (machine, host), kept.lines(machine, host, published) as one:
        before = one.ask("a")
        assert before.peer == one.name
        kept.restart("web")
        assert one.ask("b").start > before.start
        kept.seen("web")
        with kept.lines("web", address) as itself:
            assert itself.ask("c").line == "c"
        with kept.lines("web", host, published) as around:
            assert around.ask("d").line == "d"
        kept.ask("POST", "/v1/quarantines", schema.QuarantineRequest("web", reason="odd"), schema.QuarantineRow)
        assert one.is_reset(patience_s(2)), "who is outside is judged as well"
        assert kept.dial(machine, host, published, 1.0) in ("refused", "silent")


def test_where_marks_count_for_the_way_back(kept: Kept) -> None:
    """wg-quick sets ``src_valid_mark``: a pod's own address must not look like one of the host's."""
    address = kept.keep("web")
    kept.run("one")
    for path in Path("/proc/sys/net/ipv4/conf").glob(f"{kept.daemons.scope.link_prefix}*/src_valid_mark"):
        path.write_text("1")
    with kept.lines("one", address) as one:
        before = one.ask("a")
        kept.restart("web")
        assert one.ask("b").start > before.start


def test_much_goes_both_ways_and_ends_are_told_apart(kept: Kept) -> None:
    """30 MB each way, a reader that is slow, half of a connection closed."""
    address = kept.keep("web")
    kept.run("one")
    size = 30_000_000
    with kept.lines("one", address) as one:
        one.send(f"get {size}")
        time.sleep(0.3)
        got = 0
        while got < size:
            got += len(one.socket.recv(1 << 20))
        assert got == size
        assert one.ask("after").line == "after"
        one.send("sink")
        for _ in range(size // 1_000_000):
            one.socket.sendall(bytes(1_000_000))
        one.socket.shutdown(socket.SHUT_WR)
        assert one.socket.recv(100) == b"%d\n" % size
        assert one.socket.recv(100) == b"", "the service's end is an end, and no reset"


def test_two_hundred_connections_under_load(kept: Kept) -> None:
    """200 kept connections ask again and again over three restarts: each question is answered, in order."""
    address = kept.keep("web", replay=True)
    kept.run("one")
    over, failed, done = threading.Event(), list[str](), [0]

    def ask(mine: list[Lines]) -> None:
        number = 0
        while not over.is_set():
            for one in mine:
                number += 1
                try:
                    one.send(f"q{number}")
                    answer = one.receive()
                except (OSError, EOFError) as error:
                    failed.append(f"{one.name}: {error!r}")
                    return
                if answer.line != f"q{number}":
                    failed.append(f"{one.name}: {answer} for q{number}")
                    return
                done[0] += 1

    # Longer than a restart is held at most: on a busy machine it is all of that.
    lines = [Lines(kept.connect("one", address, PORT, 60.0)) for _ in range(200)]
    threads = [threading.Thread(target=ask, args=(lines[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = done[0]
            kept.restart("web")
            kept.until(lambda before=before: done[0] > before + 400, "the load goes on", 60.0)  # type: ignore[misc]
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for one in lines:
            one.close()
    assert not failed, failed[:5]


def test_a_flood_of_connections_is_bounded(kept: Kept) -> None:
    address = kept.keep("web")
    kept.run("one")
    kept.run("two")
    opened: list[socket.socket] = []

    def flood() -> None:
        for _ in range(1100):
            one = socket.socket()
            opened.append(one)
            one.settimeout(5.0)
            # What is beyond the bound is reset, now or a moment later.
            with contextlib.suppress(ConnectionResetError):
                one.connect((address, PORT))

    try:
        kept.inside("one", flood)
        kept.until(lambda: kept.holds().counters.refused >= 76, "what is beyond the bound of one client is counted")
        with kept.lines("two", address) as other:
            assert other.ask("a").line == "a", "another client is served"
    finally:
        for one in opened:
            one.close()


def ended(pid: int) -> bool:
    """Whether the process has closed all that it had: it is a zombie, or reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_relay_that_dies(kept: Kept) -> None:
    """Its connections are reset, new ones go on at once, and it comes back; those between are left alone."""
    address = kept.keep("web")
    kept.run("one")
    with kept.lines("one", address) as old:
        old.ask("a")
        killed = kept.relay_pid()
        os.kill(killed, signal.SIGKILL)
        assert old.is_reset(patience_s(2))
        # Its listener may close a moment after that connection, with whoever is in its backlog.
        kept.until(lambda: ended(killed), "it is gone")
    with kept.lines("one", address) as between:
        assert between.ask("b").peer == between.name
        kept.until(lambda: kept.holds().relaying, "the relay is back")
        with kept.lines("one", address) as new:
            before = new.ask("c")
            kept.restart("web")
            assert new.ask("d").start > before.start


def test_daemons_that_die(kept: Kept) -> None:
    """Either daemon's death, and both at once, cost no connection, old or new: the relay is taken over by the next."""
    address = kept.keep("web")
    kept.run("one")
    relay = kept.relay_pid()
    with kept.lines("one", address) as old:
        before = old.ask("a")
        for killed in (("casemate-hostd",), ("casemated",), ("casemated", "casemate-hostd")):
            for name in killed:
                kept.daemons.kill(name)
            assert old.ask("b").start == before.start
            if "casemate-hostd" not in killed:
                with kept.lines("one", address) as between:
                    assert between.ask("c").start == before.start
            kept.daemons.start()
            kept.until(lambda: kept.holds().relaying, "the relay is taken over")
            with kept.lines("one", address) as new:
                assert new.ask("d").start == before.start
                kept.until(lambda: kept.holds().ports[0].open == 2, "the relay has both")
                kept.restart("web")
                after = new.ask("e")
                assert after.start == old.ask("f").start > before.start, f"after {killed}"
                before = after
    assert kept.relay_pid() == relay
