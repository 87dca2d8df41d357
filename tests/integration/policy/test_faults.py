"""Bad input and faults through both daemons, with real packets: what is attacked holds, and others do not notice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.firewall.lab import SYN, TCP, UDP, Packet
from tests.integration.policy.world import World

from casemate.host import conntrack, rtnetlink
from casemate.sdk import ApiError
from casemate.spec.api import policy as schema

PORT = 7100
CLOSED = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: closed}
spec:
  segments: {db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}}
"""
OPEN = CLOSED.replace("ingress: deny", "ingress: allow")
REFER = CLOSED.replace("ingress: deny", "ingress: refer") + (
    """
---
apiVersion: casemate/v1
kind: Policy
metadata: {name: known}
spec:
  segments: {db: {select: {matchLabels: {app: db}}}}
  rules: [{from: any, to: [{segment: db}], ports: [tcp/7100], action: allow, when: 'source.labels.app == "web"'}]
"""
)
NO = ("refused", "silent")
RULE = "  rules: [{from: any, to: any, action: deny, when: "


def counted(world: World, name: str) -> int:
    return world.ask("GET", "/v1/policy/status", kind=schema.PolicyStatus).firewall.get(name, 0)


def wire(world: World, name: str) -> tuple[socket.socket, bytes]:
    """A raw socket on the interface of a pod, and the head of frames from it to its gateway."""

    def work() -> tuple[socket.socket, bytes]:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0x0800))
        with rtnetlink.RouteSocket() as routes:
            link = routes.link("eth0")
            assert link is not None
        text = Path("/proc/thread-self/net/arp").read_text()
        gateway = next(line.split()[3] for line in text.splitlines() if line.startswith("169.254.1.1 "))
        own = raw.getsockname()[4]
        return raw, bytes.fromhex(gateway.replace(":", "")) + own

    with world.connect(name, world.addresses["db"], PORT):
        pass  # so that the gateway's hardware address is known
    return world.inside(name, work)


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: closed}\nspec: {segments: [",
        CLOSED.replace("ingress: deny", "ingress: maybe"),
        CLOSED.replace("matchLabels", "matchLables"),
        CLOSED + RULE + "'source.labels.all(x, source.labels.all(y, true))'}]",
        CLOSED + RULE + "'" + "(" * 40 + "true" + ")" * 40 + "'}]",
        CLOSED + "  rules: [{from: [{segment: none}], to: any, action: deny}]",
        "a: &a [x]\nb: [*a, *a]",
    ],
    ids=["cut", "word", "label", "loops", "deep", "unknown-segment", "alias"],
)  # fmt: skip
def test_a_document_that_is_refused_changes_no_packet(world: World, text: str) -> None:
    db = world.serve("db", PORT, app="db")
    world.run("web", app="web")
    world.apply(OPEN)
    with world.connect("web", db, PORT) as living:
        assert living.recv(4) == b"yes\n"
        before = world.documents().state.generation
        with pytest.raises(ApiError) as caught:
            world.apply(text)
        assert caught.value.problem["status"] in (400, 422)
        assert world.documents().state.generation == before
        assert world.dial("web", db, PORT) == "yes"
        living.send(b"x")
        time.sleep(0.05)
        living.send(b"x")


def test_what_is_hardly_meant_is_said_and_packets_follow_the_first_of_two_rules(world: World) -> None:
    """A contradiction, a selector that picks nobody: taken with a warning each, and neither opens anything."""
    db = world.serve("db", PORT, app="db")
    world.run("web", app="web")
    rules = "  rules:\n" + "".join(
        f"    - {{from: [{{select: {{matchLabels: {{app: {app}}}}}}}], to: [{{segment: db}}], ports: [{ports}],"
        f" action: {action}}}\n"
        for app, ports, action in (
            ("web", "tcp/7100", "deny"),
            ("web", "tcp/7100", "allow"),
            ("nobody", "tcp/7100", "allow"),
        )
    )
    told = "\n".join(world.apply(CLOSED + rules).warnings)
    assert "rules[1]:egress[0] contradicts Policy/default/closed:rules[0]:egress[0]" in told, told
    assert "no 'app' has that value" in told, told
    assert world.dial("web", db, PORT, 0.5) in NO
    told = "\n".join(world.apply(CLOSED + rules.replace("action: deny", "action: allow")).warnings)
    assert "contradicts" not in told, told
    assert world.dial("web", db, PORT) == "yes"


def test_a_flood_of_first_packets_leaves_the_others_their_way(world: World) -> None:
    """SYNs from one pod to a port that is open, and to one that is not: the others are served throughout."""
    db = world.serve("db", PORT, app="db")
    other = world.serve("other", PORT, app="other")
    flooder = world.run("flooder", app="flooder")
    world.run("web", app="web")
    world.apply(OPEN)
    raw, head = wire(world, "flooder")
    with raw, concurrent.futures.ThreadPoolExecutor() as pool:

        def flood() -> None:
            for number in range(20_000):
                port = PORT if number % 2 else 9
                raw.send(head + b"\x08\0" + Packet(flooder, db, TCP, port, 1024 + number % 60_000, SYN).bytes())

        flooding = pool.submit(flood)
        served = 0
        while not flooding.done():
            assert world.dial("web", other, PORT) == "yes"
            served += 1
        flooding.result()
    assert served > 3
    assert world.dial("web", db, PORT) == "yes", "who was flooded serves again"


def test_a_pod_that_fills_connection_tracking_is_bounded_alone(world: World) -> None:
    """More flows than its share of the host's table: its new ones are refused, what is open and others live on."""
    db = world.serve("db", PORT, app="db")
    filler = world.run("filler", app="filler")
    world.run("web", app="web")
    world.apply(OPEN)
    maximum = conntrack.fill()[1]
    if not 0 < maximum <= 400_000:
        pytest.skip(f"missing: a table of tracked connections of a size to be filled here ({maximum})")
    raw, head = wire(world, "filler")
    before = counted(world, "crowded")
    with raw, world.connect("filler", db, PORT) as living:
        assert living.recv(4) == b"yes\n"
        try:
            # A checksum of 0 is none, so only the ports differ.
            whole = head + b"\x08\0" + Packet(filler, db, UDP).bytes()[:20]
            for number in range(maximum // 4 + 2000):
                ports = struct.pack("!HHHH", 1024 + number % 60_000, 20_000 + number // 60_000, 8, 0)
                raw.send(whole + ports)
            world.until(lambda: world.dial("filler", db, PORT, 0.5) in NO, "it gets no more")
            assert counted(world, "crowded") > before
            assert world.dial("web", db, PORT) == "yes"
            living.send(b"x")
            time.sleep(0.05)
            living.send(b"x")
        finally:
            asyncio.run(conntrack.forget(filler))
    world.until(lambda: world.dial("filler", db, PORT, 0.5) == "yes", "with fewer it may begin others again")


def test_a_flood_of_referrals_starves_nobody(world: World) -> None:
    db = world.serve("db", PORT, app="db")
    flooder = world.run("flooder", app="flooder")
    world.run("web", app="web")
    world.apply(OPEN)
    raw, head = wire(world, "flooder")
    world.apply(REFER)
    before = world.ask("GET", "/v1/policy/status", kind=schema.PolicyStatus)
    with raw, concurrent.futures.ThreadPoolExecutor() as pool:

        def flood() -> None:
            for number in range(15_000):
                packet = Packet(flooder, db, UDP, 2000 + number % 5000, 1024 + number)
                raw.send(head + b"\x08\0" + packet.bytes())

        flooding = pool.submit(flood)
        while not flooding.done():
            assert world.dial("web", db, PORT) == "yes", "decided by a condition, beside the flood"
        flooding.result()
    after = world.ask("GET", "/v1/policy/status", kind=schema.PolicyStatus)
    refused = after.firewall["referral_rate"] - before.firewall.get("referral_rate", 0)
    bounded = after.referrals.get("prompts_full", 0) - before.referrals.get("prompts_full", 0)
    assert refused + bounded > 5_000, (refused, bounded)
    assert len(world.referrals().waiting) <= 16, "the prompts of one workload are bounded"
    assert world.dial("web", db, PORT) == "yes"


def test_ipv6_is_refused_in_a_clear_word_and_counted(world: World) -> None:
    world.serve("db", PORT, app="db")
    world.run("web", app="web")
    document = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: six}
spec: {podSelector: {matchLabels: {app: web}}, egress: [{to: [{ipBlock: {cidr: "2001:db8::/32"}}, {podSelector: {}}]}]}
"""
    warnings = world.apply(document).warnings
    assert any("2001:db8::/32 matches nothing: pods have no IPv6" in one for one in warnings), warnings
    raw, head = wire(world, "web")
    before = counted(world, "ipv6")
    body = struct.pack("!IHBB16s16s", 6 << 28, 8, 17, 64, b"\xfd" + bytes(15), b"\xfd" + bytes(15)) + bytes(8)
    with raw:
        for _ in range(5):
            raw.send(head + b"\x86\xdd" + body)
    world.until(lambda: counted(world, "ipv6") >= before + 5, "each is counted")


def test_arp_from_a_pod_takes_nothing(world: World) -> None:
    """It claims a neighbour's address, its gateway's and an outside one, and asks in the name of hundreds of others."""
    db = world.serve("db", PORT, app="db")
    liar = world.run("liar", app="liar")
    world.run("web", app="web")
    raw, head = wire(world, "liar")
    own = head[6:]
    (route,) = json.loads(subprocess.run(["ip", "-j", "route", "get", liar], capture_output=True, check=True).stdout)

    def say(operation: int, sender: str, target: str, to: bytes) -> None:
        claim = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, own, socket.inet_aton(sender), bytes(6),
                            socket.inet_aton(target))  # fmt: skip
        raw.send(to + own + b"\x08\x06" + claim)

    request, reply = 1, 2
    with raw:
        for to in (head[:6], b"\xff" * 6):
            for claimed in (db, "169.254.1.1", "198.51.100.7"):
                say(reply, claimed, claimed, to)
                say(request, claimed, claimed, to)
            for number in range(400):
                say(request, f"198.51.{100 + number % 100}.{number // 100 + 1}", "169.254.1.1", to)
                say(reply, f"198.51.{100 + number % 100}.{number // 100 + 1}", "169.254.1.1", to)
    # Each frame was looked at before the call that sent it came back: a pair of interfaces has no wire between.
    shown = subprocess.run(["ip", "-j", "neigh", "show", "dev", route["dev"]], capture_output=True, check=True).stdout
    assert [(row["dst"], row["state"]) for row in json.loads(shown)] == [(liar, ["PERMANENT"])]
    assert world.dial("web", db, PORT) == "yes"
    assert world.dial("liar", db, PORT) == "yes"


# --- clocks --------------------------------------------------------------------------------------------------------

#: What the daemons take for the time of day is off by as many seconds as a file says.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *by;
__attribute__((constructor)) static void begin(void) {
    int f = open(getenv("TEST_CLOCK"), O_RDONLY);
    void *p = f < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, f, 0);
    if (p != MAP_FAILED) by = p;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    int r = syscall(SYS_clock_gettime, id, t);
    if (!r && id == CLOCK_REALTIME && by) t->tv_sec += *by;
    return r;
}
"""


def test_a_clock_that_jumps_opens_and_cuts_nothing_but_what_hours_say(world: World, tmp_path: Path) -> None:
    """A day on and two back: connections, answers and prompts go by time that only grows; hours follow the clock."""
    # Where casemated's user can read it.
    place = world.daemons.scope.folder
    source, library, offset = tmp_path / "clock.c", place / "clock.so", place / "clock"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=60)
    offset.write_bytes(struct.pack("=q", 0))
    day = 86_400

    def jump(seconds: int) -> None:
        offset.write_bytes(struct.pack("=q", seconds))

    daemons = world.daemons
    kept = dict(daemons.environment)
    daemons.environment |= {"LD_PRELOAD": str(library), "TEST_CLOCK": str(offset)}
    try:
        for name in ("casemated", "casemate-hostd"):
            daemons.kill(name)
        daemons.start()
        db = world.serve("db", PORT, app="db")
        world.run("web", app="web")
        days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
        today = days[time.gmtime().tm_wday]
        hours = OPEN.replace("default: {ingress: allow}", "default: {ingress: deny}") + (
            "  rules: [{from: any, to: [{segment: db}], action: allow,\n"
            f'    during: [{{days: [{today}], from: "00:00", to: "00:00"}}]}}]\n'
        )
        world.apply(hours)
        held = schema.QuarantineRequest("web", allow=(schema.QuarantineAllow("db"),), reason="clock", for_s=2 * day)
        world.ask("POST", "/v1/quarantines", held, schema.QuarantineRow)
        world.until(lambda: world.dial("web", db, PORT) == "yes", "it is today")
        with world.connect("web", db, PORT) as living:
            assert living.recv(4) == b"yes\n"
            world.ask("POST", "/v1/quarantines/release", schema.ReleaseRequest("web", "test"))
            jump(day)
            world.until(lambda: world.dial("web", db, PORT, 0.5) in NO, "tomorrow's hours hold")
            jump(-2 * day)
            time.sleep(1.5)
            assert world.dial("web", db, PORT, 0.5) in NO
            jump(0)
            world.until(lambda: world.dial("web", db, PORT, 0.5) == "yes", "today again")
        world.apply(OPEN)
        with world.connect("web", db, PORT) as living:
            for seconds in (day, -2 * day, 0):
                jump(seconds)
                time.sleep(0.3)
                living.send(b"x")
                assert world.dial("web", db, PORT) == "yes"
    finally:
        daemons.environment.clear()
        daemons.environment |= kept
        for name in ("casemated", "casemate-hostd"):
            daemons.kill(name)
        daemons.start()


SHOP = CLOSED + (
    "  rules: [{from: [{select: {matchLabels: {app: web}}}], to: [{segment: db}], ports: [tcp/7100], action: allow}]\n"
)
RULE_OF_MANY = '{{"from":"any","to":[{{"segment":"db"}}],"ports":["{}/{}"],"action":"deny"}}'


@pytest.mark.parametrize("count", [15_000, 100_000])
def test_a_document_of_thousands_of_rules_is_in_force_at_once_or_refused(world: World, count: int) -> None:
    """Until it holds the old rules do, for who may and for who may not; one that is refused changes nothing."""
    db = world.serve("db", PORT, app="db")
    world.run("web", app="web")
    world.run("other", app="other")
    world.apply(SHOP)
    rules = [RULE_OF_MANY.format("udp" if number % 2 else "tcp", 1 + number // 2) for number in range(count)]
    text = (
        '{"apiVersion":"casemate/v1","kind":"Policy","metadata":{"name":"many"},"spec":{"tier":"operator","segments":'
        '{"db":{"select":{"matchLabels":{"app":"db"}}}},"rules":[' + ",".join(rules) + "]}}"
    )
    said: list[str] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        applying = pool.submit(world.apply, text)
        while not applying.done():
            # One that is cut before the server spoke hears nothing: it has nothing to say itself.
            said.append(world.dial("web", db, PORT, 30.0 if count == 100_000 else 2.0))
            assert world.dial("other", db, PORT, 30.0) in NO
    if count == 100_000:
        with pytest.raises(ApiError) as caught:
            applying.result()
        assert caught.value.problem["code"] == "policy.too_large"
        assert set(said) == {"yes"}, "nobody noticed"
        assert world.dial("web", db, PORT) == "yes"
        return
    assert applying.result().enforced
    assert said == sorted(said, reverse=True), "they held from one moment on"
    assert world.dial("web", db, PORT) in NO, "the rule for its port is among them"
    assert "many:rules[14198]" in world.explain("web", "db", "tcp/7100").rule


#: Near the bounds of a condition's form; never true. It takes half a millisecond, where an ordinary one takes 10 us.
COSTLY = f"[{','.join(['1'] * 330)}].exists(x, rate{'+x' * 45} < 0)"


def test_costly_conditions_delay_who_they_are_about(world: World) -> None:
    """Fifty of them before the rule that lets pass: its connection waits, and passes; others do not wait."""
    db = world.serve("db", PORT, app="db")
    other = world.serve("other", PORT, app="other")
    world.run("web", app="web")
    costly = f"    - {{from: any, to: [{{segment: db}}], ports: [tcp/7100], action: deny, when: '{COSTLY}'}}\n"
    head, last = REFER.split("  rules: [")
    world.apply(f"{head}  rules:\n{50 * costly}    - {last.rstrip().removesuffix(']')}\n")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(world.dial, "web", db, PORT, 30.0)
        while not asking.done():
            assert world.dial("web", other, PORT, 30.0) == "yes"
        assert asking.result() == "yes"
    with pytest.raises(ApiError) as caught:
        world.apply(CLOSED + RULE + f"'{COSTLY.replace('rate', 'rate' + '+x' * 20)}'}}]")
    assert "330 times 66 steps, allowed are 16384" in caught.value.problem["detail"]
