"""Flows and names with real pods, real packets and a resolver outside that answers, lies, or says nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fuzz.packets import client_hello, query
from tests.integration.daemons import running_daemons
from tests.integration.system.site import IMAGE, Site

from casemate.node.dns import message

pytestmark = pytest.mark.root
#: One listener for all: between two of a loop nobody would listen.
SERVE = "nc -ll -p 5432 -e echo hello"
POLICY = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop}
spec:
  segments:
    front: {select: {matchLabels: {app: web}}, default: deny}
  rules:
    - {from: [{segment: front}], to: [{project: default, select: {matchLabels: {app: db}}}], ports: [tcp/5432],
       action: allow}
    - {from: [{segment: front}], to: [{names: [api.example.org]}], ports: [tcp/443], action: allow}
"""


class Outside:
    """A resolver on the host's loopback: *held* by name; a name that it does not hold is never answered."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(4096)
            except OSError:
                return
            if data == b"end":
                return
            query = message.read_query(data)
            self.asked.append(query.name)
            address = self.held.get(query.name)
            if address is not None:
                records = [(message.A, 60, ipaddress.ip_address(address).packed)] if query.kind == message.A else []
                # Somebody guesses: wrong numbers and a wrong spelling come before the answer.
                lie = bytearray(message.respond(query, 0, [(message.A, 60, bytes((192, 0, 2, 66)))]))
                lie[0] ^= 1
                self._socket.sendto(bytes(lie), sender)
                self._socket.sendto(message.respond(query, 0, records), sender)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    one = Outside()
    yield one
    one.close()


@pytest.fixture(scope="module")
def site(outside: Outside) -> Iterator[Site]:
    with running_daemons(CASEMATE_NETWORK_DNS=f"127.0.0.1#{outside.port}") as daemons:
        daemons.import_busybox(IMAGE)
        one = Site(daemons)
        for name in ("db", "web", "other"):
            done = one("run", "-d", "--name", name, "-l", f"app={name}", IMAGE, "sh", "-c",
                       SERVE if name == "db" else "sleep 1000")  # fmt: skip
            assert done.returncode == 0, done.stderr
        yield one


def until(look: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def inside(site: Site, pod: str, script: str) -> str:
    return site("exec", pod, "sh", "-c", script).stdout.decode()


def flows(site: Site, *argv: str) -> list[dict[str, object]]:
    done = site("--json", "flows", *argv)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout)["flows"]
    return rows


def address(site: Site, pod: str) -> str:
    return site("inspect", "--format", "{{.NetworkSettings.IPAddress}}", pod).stdout.decode().strip()


def child(site: Site, module: str) -> int:
    """The pid of casemated's child that runs *module*; 0 where there is none."""
    parent = site.daemons.processes["casemated"].pid
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    return 0


def test_names_lead_to_pods_and_what_follows_is_seen(site: Site) -> None:
    assert inside(site, "web", "nc db 5432 </dev/null") == "hello\n"
    assert inside(site, "web", "nc db.default.casemate 5432 </dev/null") == "hello\n"
    assert until(lambda: len(flows(site, "--from", "web", "--to", "db", "--port", "5432")) >= 2)
    row = flows(site, "--from", "web", "--to", "db")[-1]
    assert (row["verdict"], row["protocol"]) == ("allow", "tcp")
    text = site("flows", "--to", "db").stdout.decode()
    assert "db tcp/5432" in text
    back = inside(site, "other", f"nslookup {address(site, 'web')}")
    assert "web.default.casemate" in back


def test_the_rest_of_the_world_is_asked_with_care(site: Site, outside: Outside) -> None:
    outside.held["www.example.org"] = "192.0.2.7"
    outside.held["evil.example.org"] = address(site, "db")
    assert "192.0.2.7" in inside(site, "web", "nslookup www.example.org")
    assert "192.0.2.66" not in inside(site, "web", "nslookup -type=a www.example.org"), "a guess is not believed"
    assert "REFUSED" in inside(site, "web", "nslookup evil.example.org 2>&1")
    assert until(lambda: "dns_refused" in site("events", "--since", "5m", "--no-follow").stdout.decode())
    inside(site, "web", "nslookup web; nslookup nothing")
    assert not {"web", "nothing"} & set(outside.asked), "names without a dot are told to nobody"


TCP = """
import socket, sys
data = bytes.fromhex(sys.argv[1])
s = socket.create_connection(("169.254.1.1", 53), 5)
for _ in range(2):
    s.sendall(len(data).to_bytes(2, "big") + data)
    size = int.from_bytes(s.recv(2, socket.MSG_WAITALL), "big")
    print(s.recv(size, socket.MSG_WAITALL).hex())
"""


def test_over_tcp_too_and_two_questions_on_one_connection(site: Site) -> None:
    pid = site("inspect", "--format", "{{.State.Pid}}", "web").stdout.decode().strip()
    done = subprocess.run(["nsenter", "-t", pid, "-n", "/usr/bin/python3", "-c", TCP, query("db").hex()],
                          capture_output=True, text=True, check=True, timeout=20)  # fmt: skip
    answers = [message.read_answer(bytes.fromhex(line)) for line in done.stdout.split()]
    wanted = ipaddress.ip_address(address(site, "db")).packed
    assert [[packed for packed, _ in answer.addresses()] for answer in answers] == [[wanted]] * 2


FLOOD = """
import socket, sys
head, tail = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("up", flush=True)
for number in range(20000):
    s.sendto(head + bytes([8]) + b"%08d" % number + tail, ("169.254.1.1", 53))
print("done", flush=True)
"""


def test_a_flood_from_one_pod_is_cut_short_in_the_kernel(site: Site, outside: Outside) -> None:
    pid = site("inspect", "--format", "{{.State.Pid}}", "web").stdout.decode().strip()
    whole = query("00000000.flood.example.org")
    argv = ["nsenter", "-t", pid, "-n", "/usr/bin/python3", "-c", FLOOD, whole[:12].hex(), whole[21:].hex()]
    outside.held["calm.example.org"] = "192.0.2.9"
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"up\n"
        assert "192.0.2.9" in inside(site, "other", "nslookup calm.example.org")
        assert flood.stdout.readline() == b"done\n"
    assert "192.0.2.9" in inside(site, "other", "nslookup calm.example.org")
    # What waits for an answer of the flood is given up after seconds; then web is heard again.
    assert until(lambda: "192.0.2.9" in inside(site, "web", "nslookup calm.example.org"), 20.0)
    table = f"{site.daemons.scope.table}_names"
    listed = subprocess.run(["nft", "-j", "list", "chain", "ip", table, "bound"], capture_output=True, check=True)
    rules = [row["rule"] for row in json.loads(listed.stdout)["nftables"] if "rule" in row]
    dropped = [part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part]
    assert dropped[0] > 1000


def test_a_silent_resolver_holds_up_nobody_else(site: Site, outside: Outside) -> None:
    slow = subprocess.Popen(site.argv("exec", "web", "nslookup", "silent.example.org"), env=site.environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        assert until(lambda: "silent.example.org" in outside.asked)
        outside.held["quick.example.org"] = "192.0.2.8"
        begun = time.monotonic()
        assert "192.0.2.8" in inside(site, "other", "nslookup quick.example.org")
        assert inside(site, "web", "nc db 5432 </dev/null") == "hello\n"
        assert slow.poll() is None or time.monotonic() - begun > 2
        said, _ = slow.communicate(timeout=30)
        assert b"SERVFAIL" in said or b"timed out" in said
    finally:
        slow.kill()
        slow.wait()


def test_the_name_that_tls_shows(site: Site) -> None:
    hello = "".join(f"\\{byte:03o}" for byte in client_hello(b"shop.example.org"))
    inside(site, "web", f"printf '{hello}' | nc -w 1 db 5432")
    assert until(lambda: bool(flows(site, "--to", "shop.example.org")))
    assert flows(site, "--to", "shop.example.org")[0]["tls"] == "shop.example.org"


def test_refused_flows_name_their_rule_and_names_in_rules_open_the_way(site: Site, outside: Outside) -> None:
    outside.held["api.example.org"] = "198.51.100.77"
    file = site.folder / "shop.yaml"
    file.write_text(POLICY)
    assert site("policy", "apply", "-f", str(file)).returncode == 0
    try:
        assert inside(site, "web", "nc db 5432 </dev/null") == "hello\n"
        inside(site, "web", f"nc -w 1 {address(site, 'other')} 80 </dev/null")
        assert until(lambda: bool(flows(site, "--verdict", "deny")))
        denied = flows(site, "--verdict", "deny")[0]
        assert "front" in str(denied["rule"])
        assert denied["destination"]["name"] == "other"  # type: ignore[index]
        assert until(lambda: bool(flows(site, "--to", "db", "--since", "20s")))
        assert "rules[0]" in str(flows(site, "--to", "db")[-1]["rule"])
        refused = "nc -w 1 198.51.100.77 443 </dev/null 2>&1"
        assert "refused" in inside(site, "web", refused), "before it asked, the address is a stranger's"
        said = inside(site, "web", f"nslookup api.example.org >/dev/null; {refused}")
        assert "refused" not in said
        assert until(lambda: any(row["verdict"] == "allow" for row in flows(site, "--to", "api.example.org")))
    finally:
        assert site("policy", "rm", "shop").returncode == 0


def test_what_is_dropped_before_any_policy_names_its_guard(site: Site) -> None:
    inside(site, "web", "nc -w 1 169.254.169.254 80 </dev/null")
    assert until(lambda: bool(flows(site, "--to", "169.254.169.254")))
    row = flows(site, "--to", "169.254.169.254")[-1]
    assert (row["verdict"], row["rule"]) == ("deny", "Guard:metadata"), row


def test_suggested_rules_are_applied_as_they_are_and_change_nothing(site: Site) -> None:
    assert inside(site, "web", "nc db 5432 </dev/null") == "hello\n"
    assert until(lambda: bool(flows(site, "--from", "web", "--to", "db", "--verdict", "allow")))
    file = site.folder / "observed.yaml"
    file.write_bytes(site("policy", "suggest", "--since", "1h").stdout)
    try:
        assert site("policy", "apply", "-f", str(file)).returncode == 0
        assert inside(site, "web", "nc db 5432 </dev/null") == "hello\n"
        inside(site, "other", "nc -w 1 web 80 </dev/null")
        assert until(lambda: bool(flows(site, "--from", "other", "--to", "web", "--verdict", "deny")))
    finally:
        assert site("policy", "rm", "observed").returncode == 0


def test_what_was_refused_is_not_suggested(site: Site) -> None:
    """Somebody tries what is closed: rules made of what was seen do not open it."""
    closed = site.folder / "closed.yaml"
    closed.write_text("""
apiVersion: casemate/v1
kind: Policy
metadata: {name: closed}
spec: {segments: {db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}}}
""")
    assert site("policy", "apply", "-f", str(closed)).returncode == 0
    try:
        inside(site, "other", "nc -w 1 db 5433 </dev/null")
        assert until(lambda: bool(flows(site, "--from", "other", "--to", "db", "--port", "5433")), 30.0)
        assert flows(site, "--from", "other", "--to", "db", "--port", "5433")[-1]["verdict"] == "deny"
        assert "tcp/5433" not in site("policy", "suggest", "--since", "1h").stdout.decode()
        done = site("quarantine", "other", "--reason", "test")
        assert done.returncode == 0, done.stderr
        assert b"5433" not in site("quarantine", "ls", "--before").stdout, "it was not connected to that"
    finally:
        site("quarantine", "release", "other", "--reason", "test")
        assert site("policy", "rm", "closed").returncode == 0


def test_a_quarantine_leaves_no_way_out_by_names(site: Site, outside: Outside) -> None:
    """What a pod asks for reaches whoever serves the domain: refused, but for names that it was left."""
    outside.held |= {"tunnel.example.net": "198.51.100.21", "api.example.net": "198.51.100.22"}
    # The resolver hears of what may be asked a moment after a command that changed it was answered.
    assert until(lambda: "198.51.100.21" in inside(site, "other", "nslookup tunnel.example.net"), 30.0)
    done = site("quarantine", "other", "--reason", "test", "--allow", "to:api.example.net@tcp/443")
    assert done.returncode == 0, done.stderr
    try:
        assert until(lambda: "198.51.100.21" not in inside(site, "other", "nslookup tunnel.example.net"), 30.0)
        asked = len(outside.asked)
        inside(site, "other", "nslookup data.tunnel.example.net")
        assert not [name for name in outside.asked[asked:] if "tunnel" in name]
        assert "198.51.100.22" in inside(site, "other", "nslookup api.example.net")
        assert address(site, "db") in inside(site, "other", "nslookup db")
        assert "198.51.100.21" in inside(site, "web", "nslookup tunnel.example.net")
    finally:
        site("quarantine", "release", "other", "--reason", "test")
    assert until(lambda: "198.51.100.21" in inside(site, "other", "nslookup tunnel.example.net"), 30.0)


CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: other}}, policyTypes: [Egress]%s}
"""


def test_rules_that_let_nothing_out_let_no_names_out(site: Site, outside: Outside) -> None:
    """Rules by names leave these names; no egress at all leaves those of the node; a way out to any address, all."""
    outside.held |= {"tunnel.example.net": "198.51.100.21", "api.example.org": "198.51.100.77"}
    asks, answer = "nslookup tunnel.example.net", "198.51.100.21"
    files = [site.folder / name for name in ("front.yaml", "closed.yaml")]
    files[0].write_text(POLICY)
    files[1].write_text(CLOSED % "")
    closed = "NetworkPolicy/default/closed"
    try:
        assert site("policy", "apply", "-f", str(files[0])).returncode == 0
        assert site("policy", "apply", "-f", str(files[1])).returncode == 0
        for pod in ("web", "other"):
            assert until(lambda pod=pod: answer not in inside(site, pod, asks), 30.0)  # type: ignore[misc]
        asked = len(outside.asked)
        for pod in ("web", "other"):
            inside(site, pod, "nslookup secret.tunnel.example.net")
        assert not [name for name in outside.asked[asked:] if "tunnel" in name]
        assert "198.51.100.77" in inside(site, "web", "nslookup api.example.org")
        assert answer in inside(site, "db", asks)
        assert address(site, "db") in inside(site, "other", "nslookup db")
        said = site("policy", "explain", "web", "198.51.100.77", "tcp/443").stdout.decode()
        assert "these names outside: api.example.org" in said
        said = site("policy", "explain", "other", "198.51.100.77", "tcp/443").stdout.decode()
        assert "no name outside" in said
        files[1].write_text(CLOSED % ", egress: [{ports: [{port: 53, protocol: UDP}]}]")
        assert site("policy", "apply", "-f", str(files[1])).returncode == 0
        assert until(lambda: answer in inside(site, "other", asks), 30.0)
    finally:
        site("policy", "rm", closed)
        site("policy", "rm", "shop")
    assert until(lambda: answer in inside(site, "web", asks), 30.0)


REFERRED = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: referred}
spec:
  segments: {front: {select: {matchLabels: {app: web}}, default: deny}}
  rules:
    - {from: [{segment: front}], to: [{names: [api.example.org]}], ports: [tcp/443], action: refer}
"""


def test_referred_by_name_only_these_names_are_asked_and_each_connection_waits(site: Site, outside: Outside) -> None:
    outside.held |= {"tunnel.example.net": "198.51.100.21", "api.example.org": "198.51.100.77"}
    file = site.folder / "referred.yaml"
    file.write_text(REFERRED)
    assert site("policy", "apply", "-f", str(file)).returncode == 0
    try:
        assert until(lambda: "198.51.100.21" not in inside(site, "web", "nslookup tunnel.example.net"))
        script = "nslookup api.example.org; nc -w 60 198.51.100.77 443 </dev/null >/dev/null 2>&1 &"
        assert "198.51.100.77" in inside(site, "web", script)
        assert until(lambda: "198.51.100.77" in site("referral", "ls").stdout.decode())
        listed = site("referral", "ls").stdout.decode()
        assert "default/web (198." in listed, listed
        assert "198.51.100.77 (asked for as api.example.org)" in listed, listed
        event = site("events", "--since", "5m", "--no-follow", "-f", "kind=referral").stdout.decode()
        assert "dns=api.example.org" in event, event
    finally:
        assert site("policy", "rm", "referred").returncode == 0


ABOVE = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: above}
spec:
  tier: operator
  segments: {front: {select: {matchLabels: {app: web}}}}
  rules:
    - {from: [{segment: front}], to: [{cidr: 198.51.100.0/24}], action: deny}
"""


def test_a_name_opens_nothing_that_a_tier_above_closes(site: Site, outside: Outside) -> None:
    """Who answers for a name chooses where it leads to: the operator's ranges hold, whatever that is."""
    outside.held["api.example.org"] = "198.51.100.78"
    above, below = site.folder / "above.yaml", site.folder / "shop.yaml"
    above.write_text(ABOVE)
    below.write_text(POLICY)
    asks = "nslookup api.example.org; nc -w 1 198.51.100.78 443 </dev/null 2>&1"
    assert site("policy", "apply", "-f", str(below)).returncode == 0
    try:
        assert until(lambda: "refused" not in inside(site, "web", asks)), "without it the name opens the way"
        assert site("policy", "apply", "-f", str(above)).returncode == 0
        said = inside(site, "web", asks)
        assert "refused" in said
        assert "above" in site("policy", "explain", "web", "198.51.100.78", "tcp/443").stdout.decode()
    finally:
        site("policy", "rm", "above")
        site("policy", "rm", "shop")


def test_a_map_of_it_all(site: Site) -> None:
    page = site.folder / "map.html"
    assert site("flows", "map", "--html", str(page)).returncode == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert ">db<" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), "it loads nothing"
    assert json.loads(site("--json", "flows", "map").stdout)["edges"]


def test_the_sdk_has_it_too(site: Site) -> None:
    client = site.daemons.client
    rows = client.flows(source="web", target="db", limit=2).flows
    assert rows
    assert all((row.source.name, row.destination.name) == ("web", "db") for row in rows)
    assert client.flow_map().edges
    stream = client.follow_flows(target="db", since="1h")
    assert next(iter(stream)).destination.name == "db"


def test_following_shows_what_happens_now(site: Site) -> None:
    with subprocess.Popen(site.argv("--json", "flows", "-f", "--to", "db"), env=site.environment,
                          stdout=subprocess.PIPE) as stream:  # fmt: skip
        assert stream.stdout is not None
        try:
            for _ in range(20):  # until the stream is open nothing of it is seen
                inside(site, "other", "nc db 5432 </dev/null")
                os.set_blocking(stream.stdout.fileno(), False)
                line = stream.stdout.readline()
                if line:
                    break
            assert json.loads(line)["source"]["name"] == "other"
        finally:
            stream.kill()


def test_the_table_of_names_that_somebody_took_away_comes_back(site: Site) -> None:
    subprocess.run(["nft", "delete", "table", "ip", f"{site.daemons.scope.table}_names"], check=True)
    assert until(lambda: inside(site, "web", "nc -w 1 db 5432 </dev/null") == "hello\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_names_outlive_a_restart_of_casemated(site: Site, outside: Outside, number: int) -> None:
    """Questions are answered while it is away, and what was told under a rule's name holds before and after."""
    outside.held |= {"api.example.org": "198.51.100.77", "calm.example.org": "192.0.2.9"}
    file = site.folder / "shop.yaml"
    file.write_text(POLICY)
    assert site("policy", "apply", "-f", str(file)).returncode == 0
    inits = {
        pod: site("inspect", "--format", "{{.State.Pid}}", pod).stdout.decode().strip() for pod in ("web", "other")
    }

    def web(script: str, pod: str = "web") -> str:
        # Not by casemated, which is away.
        done = subprocess.run(["nsenter", "-t", inits[pod], "-n", "-m", "-r", "sh", "-c", script], capture_output=True,
                              text=True, check=False, timeout=30)  # fmt: skip
        return done.stdout + done.stderr

    refused = "nc -w 1 198.51.100.77 443 </dev/null 2>&1"
    try:
        assert "refused" not in web(f"nslookup api.example.org >/dev/null; {refused}")
        assert until(lambda: "192.0.2.9" not in web("nslookup calm.example.org"), 30.0)
        site.daemons.kill("casemated", number)
        assert "192.0.2.9" not in web("nslookup calm.example.org"), "no rule leads web there"
        assert "192.0.2.9" in web("nslookup calm.example.org", "other")
        assert web("nc db 5432 </dev/null") == "hello\n", "a pod's name"
        assert "refused" not in web(refused), "the kernel holds what the pod was told"
        site.daemons.start()
        for _ in range(30):
            assert "refused" not in web(refused.replace("-w 1", "-w 0.1")), "nor is it forgotten at the start"
            assert "192.0.2.9" in web("nslookup calm.example.org", "other")
    finally:
        site.daemons.start()
        assert until(lambda: site("policy", "rm", "shop").returncode == 0)


@pytest.mark.parametrize(
    "victim", ["casemate.node.flows.child", "casemate.node.dns.child", "casemated", "casemate-hostd"]
)
def test_whoever_is_killed_comes_back_and_goes_on(site: Site, victim: str) -> None:
    if victim.startswith("casemate.node"):
        assert until(lambda: child(site, victim) > 0)
        before = child(site, victim)
        os.kill(before, signal.SIGKILL)
        assert until(lambda: child(site, victim) not in (0, before))
    else:
        site.daemons.kill(victim)
        site.daemons.start()
        assert until(lambda: child(site, "casemate.node.flows.child") > 0)
        assert until(lambda: child(site, "casemate.node.dns.child") > 0)
    count = len(flows(site, "--to", "db", "-n", "10000"))

    def seen() -> bool:
        return inside(site, "web", "nc -w 1 db 5432 </dev/null") == "hello\n" and (
            len(flows(site, "--to", "db", "-n", "10000")) > count
        )

    assert until(seen, 20.0)


def test_metrics_are_for_those_who_may(site: Site) -> None:
    from casemate.cli.wire.client import Client  # noqa: PLC0415

    client = Client(f"unix://{site.daemons.socket}", "default")
    answer = client.send("GET", "/metrics", [])
    text = b"".join(answer.chunks).decode()
    client.close()
    assert 'casemate_containers{state="running"} 3\n' in text
    assert "casemate_flows_watching 1\n" in text
    assert "casemate_dns_up 1\n" in text
    assert "casemate_hostd_up 1\n" in text
    assert len({line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}) > 20
