"""Pods' links and published ports with real packets: who reaches whom, and who does not."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import pytest
from tests.addresses import free_port, host_address
from tests.integration.leaks import Scope

from casemate.host import conntrack, netns, nft, nft_netlink, rtnetlink, sysctls
from casemate.host.route_messages import Message
from casemate.network import links, nat
from casemate.network.firewall import sets
from casemate.network.firewall.kernel import Change, Kernel
from casemate.network.firewall.rules import TableSpec
from casemate.network.plan import GATEWAY, PodLink, Publish, pod_link

pytestmark = pytest.mark.root
T = TypeVar("T")


class Pods:
    """Some pods of one test, with our tables; no policy is in force."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.nat = nat.Nat(scope.table, scope.link_prefix, scope.pool)
        pool, gateway = IPv4Network(scope.pool), socket.inet_aton(GATEWAY)
        self.kernel = Kernel(TableSpec(scope.table, scope.link_prefix, pool, gateway, 20_000, 209))
        self.links: list[PodLink] = []
        self.servers: list[subprocess.Popen[bytes]] = []

    def add(self, *ports: Publish) -> PodLink:
        number = len(self.links) + 5
        link = pod_link(
            f"{number:08x}" + os.urandom(28).hex(),
            str(IPv4Network(self.scope.pool)[number]),
            prefix=self.scope.link_prefix,
            pool=self.scope.pool,
            netns_folder=self.scope.folder / "netns",
            mtu_bytes=1400,
            ports=ports,
        )
        asyncio.run(links.apply(link))
        self.know(link)
        self.links.append(link)
        self.nat.publish(link)
        return link

    def know(self, link: PodLink) -> None:
        """Let the pod's packets in from the interface that it has now."""
        rows = sets.source_rows(
            links.index(link.interface), rtnetlink.mac_bytes(link.pod_mac), socket.inet_aton(link.address)
        )
        asyncio.run(self.kernel.change(Change(adds=rows)))

    def inside(self, link: PodLink, function: Callable[[], T]) -> T:
        async def body() -> T:
            number = rtnetlink.open_netns(link.pin)
            try:
                return await netns.inside(number, function)
            finally:
                os.close(number)

        return asyncio.run(body())

    def serve(self, link: PodLink | None, port: int, kind: str = "tcp") -> None:
        """A program in the pod (or on the host) that answers each caller with the address that it sees."""
        script = (
            "import socket, sys\n"
            f"s = socket.socket(type=socket.SOCK_{'STREAM' if kind == 'tcp' else 'DGRAM'})\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            f"s.bind(('0.0.0.0', {port}))\n"
            + (
                "s.listen()\nprint('ready', flush=True)\n"
                "while True:\n c, a = s.accept(); c.sendall(a[0].encode()); c.close()\n"
                if kind == "tcp"
                else "print('ready', flush=True)\nwhile True:\n d, a = s.recvfrom(99); s.sendto(a[0].encode(), a)\n"
            )
        )
        enter = ["nsenter", f"--net={link.pin}"] if link else []
        server = subprocess.Popen([*enter, "/usr/bin/python3", "-c", script], stdout=subprocess.PIPE)
        self.servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.communicate(timeout=10)
        for link in self.links:
            asyncio.run(links.remove(link.pin, link.interface, wait=True))
        asyncio.run(self.nat.remove())
        self.nat.close()
        self.kernel.close()
        self.kernel.followed.close()


@pytest.fixture
def pods(scope: Scope) -> Iterator[Pods]:
    some = Pods(scope)
    asyncio.run(some.nat.ensure())
    some.kernel.probe()
    asyncio.run(some.kernel.make((), 0))
    yield some
    some.close()


def ask(address: str, port: int, kind: str = "tcp") -> str:
    """What the server at *address* says it sees; the error's name when it cannot be reached."""
    try:
        with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
            one.settimeout(1.0)
            one.connect((address, port))
            if kind == "udp":
                one.send(b"?")
            return one.recv(99).decode()
    except OSError as error:
        return type(error).__name__


def test_a_pod_has_its_address_its_route_and_no_ipv6(pods: Pods) -> None:
    link = pods.add()

    def look() -> str:
        names = ["ip -4 -o addr", "ip -6 -o addr", "ip -4 route", "ip neigh", "ip -o link"]
        return "\n".join(subprocess.run(n.split(), capture_output=True, check=True).stdout.decode() for n in names)

    text = pods.inside(link, look)
    assert f"{link.address}/32" in text
    assert f"default via {GATEWAY} dev eth0 proto static onlink" in text
    assert f"{GATEWAY} dev eth0 lladdr {link.host_mac} PERMANENT" in text
    assert "mtu 1400" in text
    assert "inet6" not in text
    outside = subprocess.run(["ip", "-6", "addr", "show", link.interface], capture_output=True, check=True)
    assert outside.stdout == b""
    assert [one.interface for one in links.found(pods.scope.link_prefix)] == [link.interface]
    assert links.pins(link.pin.parent) == [link.pin]


def test_pods_and_host_reach_each_other_with_their_own_addresses(pods: Pods) -> None:
    one, other = pods.add(), pods.add()
    pods.serve(one, 80)
    pods.serve(one, 53, "udp")
    assert pods.inside(other, lambda: ask(one.address, 80)) == other.address
    assert pods.inside(other, lambda: ask(one.address, 53, "udp")) == other.address
    assert ask(one.address, 80) == GATEWAY
    port = free_port()
    pods.serve(None, port)
    assert pods.inside(other, lambda: ask(GATEWAY, port)) == other.address


def test_a_published_port_is_reached_from_everywhere(pods: Pods) -> None:
    port, udp, host = free_port(), free_port(), host_address()
    one, other = pods.add(Publish("tcp", port, 80), Publish("udp", udp, 53)), pods.add()
    pods.serve(one, 80)
    pods.serve(one, 53, "udp")
    assert ask("127.0.0.1", port) == host
    assert ask(host, port) == host
    assert ask("127.0.0.1", udp, "udp") == host
    # Another pod keeps its identity on the way; the pod itself comes back as the host (hairpin).
    assert pods.inside(other, lambda: ask(host, port)) == other.address
    assert pods.inside(other, lambda: ask(host, udp, "udp")) == other.address
    assert pods.inside(one, lambda: ask(host, port)) == host
    # A port of the same number elsewhere is nobody's business.
    assert ask(other.address, port) == "ConnectionRefusedError"


def test_a_port_on_one_address_is_not_on_the_others(pods: Pods) -> None:
    port, host = free_port(), host_address()
    one, other = pods.add(Publish("tcp", port, 80, "127.0.0.1")), pods.add(Publish("tcp", port, 81, host))
    pods.serve(one, 80)
    pods.serve(other, 81)
    assert ask("127.0.0.1", port) == host
    assert ask(host, port) == host
    assert {(p.port.host_address, p.address) for p in pods.nat.published()} == {
        ("127.0.0.1", one.address), (host, other.address),
    }  # fmt: skip
    assert pods.nat.unpublish(one.address) == 1
    assert ask("127.0.0.1", port) == "ConnectionRefusedError"
    assert ask(host, port) == host


def test_a_flow_that_goes_on_follows_the_port_to_its_new_pod(pods: Pods) -> None:
    port = free_port()
    one, other = pods.add(Publish("udp", port, 53)), pods.add()
    for link in (one, other):
        pods.serve(link, 53, "udp")
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(1.0)
        client.connect((host_address(), port))
        client.send(b"?")
        assert client.recv(99)
        pods.nat.unpublish(one.address)
        pods.nat.publish(dataclasses.replace(other, ports=one.ports))
        assert pods.inside(other, lambda: ask(one.address, 53, "udp")) == other.address
        assert asyncio.run(conntrack.forget(one.address)) >= 1
        # A packet that was on its way may have made one more entry.
        assert any(asyncio.run(conntrack.forget(one.address)) == 0 for _ in range(5))
        pods.servers[0].kill()  # the old pod answers no more
        client.send(b"?")
        assert client.recv(99)


def test_a_taken_port_is_refused_and_nothing_is_changed(pods: Pods) -> None:
    port, free = free_port(), free_port()
    pods.add(Publish("tcp", port, 80))
    other = dataclasses.replace(pods.add(), ports=(Publish("tcp", free, 80), Publish("tcp", port, 80)))
    before = pods.nat.published()
    with pytest.raises(nat.PortTaken, match="another pod"):
        pods.nat.publish(other)
    assert pods.nat.published() == before  # one transaction: the free one was not added either


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_where_a_program_of_the_host_listens_is_refused(pods: Pods, kind: str) -> None:
    port = free_port()
    pods.serve(None, port, kind)
    link = dataclasses.replace(pods.add(), ports=(Publish(kind, port, 80),))  # type: ignore[arg-type]
    with pytest.raises(nat.PortTaken, match="program of the host"):
        pods.nat.publish(link)
    link = dataclasses.replace(link, ports=(Publish("tcp", free_port(), 80, "203.0.113.7"),))
    with pytest.raises(nat.PortTaken, match="not an address of this host"):
        pods.nat.publish(link)


def test_a_pod_cannot_speak_with_anothers_address(pods: Pods) -> None:
    """The pod's root has no right to change its addresses; the host's own root does it here, to be sure of the rest."""
    one, other = pods.add(), pods.add()
    pods.serve(other, 53, "udp")
    spoofed = str(IPv4Network(pods.scope.pool)[99])

    def spoof(source: str) -> str:
        subprocess.run(["ip", "addr", "add", f"{source}/32", "dev", "eth0"], check=True)
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.settimeout(0.5)
            sender.sendto(b"?", (other.address, 53))
            try:
                return sender.recv(99).decode()
            except TimeoutError:
                return "dropped"

    assert pods.inside(one, lambda: spoof(spoofed)) == "dropped"
    # With the address of a pod that exists the answer would go there anyway; that the question is dropped is counted.
    assert pods.inside(one, lambda: ask(other.address, 53, "udp")) == one.address
    dropped_by_filter = Path(f"/proc/sys/net/ipv4/conf/{one.interface}/rp_filter").read_text().strip()
    assert pods.kernel.counters()["spoofed"] == 1
    assert dropped_by_filter == "1"


def test_an_address_belongs_to_an_interface(pods: Pods) -> None:
    """A pod that takes another's hardware address and address both has nothing of it: also where the host looks at no
    way back (rp_filter 2, as systemd sets for all interfaces)."""
    one, other, asked = pods.add(), pods.add(), pods.add()
    for link in (one, other):
        Path(f"/proc/sys/net/ipv4/conf/{link.interface}/rp_filter").write_text("2")
    listener = pods.inside(asked, lambda: socket.socket(type=socket.SOCK_DGRAM))
    with listener:
        listener.bind(("0.0.0.0", 53))
        listener.settimeout(30)

        def say(link: PodLink, word: bytes, gateway: str) -> None:
            script = f"""
                ip link set eth0 address {link.pod_mac}
                ip addr replace {link.address}/32 dev eth0
                ip neigh replace {GATEWAY} lladdr {gateway} dev eth0 nud permanent
            """
            subprocess.run(["sh", "-ec", script], check=True, timeout=30)
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.bind((link.address, 0))
                sender.sendto(word, (asked.address, 53))

        before = pods.kernel.counters()["spoofed"]
        pods.inside(one, lambda: say(other, b"not the other", one.host_mac))
        assert pods.kernel.counters()["spoofed"] == before + 1
        pods.inside(other, lambda: say(other, b"the other", other.host_mac))
        assert listener.recv(99) == b"the other"


def test_withdrawn_is_only_what_is_ones_own(pods: Pods) -> None:
    """Of two pods that had the same port one after the other, the first takes nothing of the second's along."""
    port, at_one = free_port(), free_port()
    ports = (Publish("tcp", port, 80), Publish("udp", at_one, 53, "127.0.0.1"))
    one, other = pods.add(*ports), pods.add()
    assert {(p.port, p.address) for p in pods.nat.published()} == {(port, one.address) for port in ports}
    assert pods.nat.unpublish(one.address) == 2
    taker = dataclasses.replace(other, ports=ports[:1])
    pods.nat.publish(taker)
    assert pods.nat.withdraw(one) == 0
    assert [(p.port, p.address) for p in pods.nat.published()] == [(ports[0], other.address)]
    pods.nat.publish(dataclasses.replace(one, ports=ports[1:]))
    assert pods.nat.withdraw(one) == 1
    assert pods.nat.withdraw(taker) == 1
    assert pods.nat.published() == []
    assert not any("elem" in row.get("set", {}) for row in pods.nat.nft.table("ip", pods.scope.table) or ())


def test_without_the_table_nothing_is_published_and_nothing_withdrawn(pods: Pods) -> None:
    one = pods.add(Publish("tcp", free_port(), 80))
    nft_netlink.delete_table("ip", pods.scope.table)
    assert pods.nat.withdraw(one) == pods.nat.unpublish(one.address) == 0
    assert pods.nat.published() == []


def test_the_hosts_end_is_strict_before_it_is_up(pods: Pods) -> None:
    """What was given by netlink reads as if it had been written by sysctl."""

    def conf(link: PodLink, name: str, family: str = "ipv4") -> str:
        return Path(f"/proc/sys/net/{family}/conf/{link.interface}/{name}").read_text().strip()

    wanted = {"rp_filter": "1", "accept_redirects": "0", "send_redirects": "0", "forwarding": "1", "arp_ignore": "8"}
    plain, published = pods.add(), pods.add(Publish("tcp", free_port(), 80))
    for link in (plain, published):
        assert {name: conf(link, name) for name in wanted} == wanted
        assert conf(link, "disable_ipv6", "ipv6") == "1"
    assert (conf(plain, "route_localnet"), conf(published, "route_localnet")) == ("0", "1")


def test_sysctls_are_of_the_namespace_and_leave_nothing_mounted(pods: Pods) -> None:
    def text() -> str:
        return Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()

    def write() -> None:
        with sysctls.view() as proc:
            sysctls.write(proc, "net/ipv4/ip_unprivileged_port_start", "77")
            sysctls.write(proc, "net/ipv4/no_such_thing", "1")

    one = pods.add()
    mounted, before = Path("/proc/self/mountinfo").read_bytes().count(b" - proc "), text()
    pods.inside(one, write)
    assert pods.inside(one, text) == "77"
    assert text() == before != "77"
    assert Path("/proc/self/mountinfo").read_bytes().count(b" - proc ") == mounted


def test_a_pod_does_not_reach_the_hosts_loopback(pods: Pods) -> None:
    port = free_port()
    one = pods.add(Publish("tcp", free_port(), 80))  # route_localnet is on for such a pod
    pods.serve(None, port)

    def reach() -> str:
        Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
        subprocess.run(
            ["ip", "route", "add", "127.9.9.9/32", "via", "169.254.1.1", "dev", "eth0", "onlink"], check=True
        )
        subprocess.run(["ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"], check=True)
        return ask("127.9.9.9", port)

    assert pods.inside(one, reach) in ("TimeoutError", "OSError")
    assert pods.kernel.counters()["loopback"] >= 1


def test_a_neighbour_on_the_wire_reaches_published_ports_only(pods: Pods) -> None:
    """A namespace with a plain veth stands for a machine beside the host that routes the pool to it."""
    scope, port = pods.scope, free_port()
    one = pods.add(Publish("tcp", port, 80))
    pods.serve(one, 80)
    pods.serve(one, 81)
    pin, name = scope.folder / "neighbour", f"n{scope.link_prefix[1:5]}x"
    asyncio.run(links.apply_loopback_only(pin))
    try:
        script = f"""
            ip link add {name} type veth peer name eth0 netns {pin}
            ip addr add 203.0.113.1/24 dev {name}
            ip link set {name} up
            nsenter --net={pin} ip addr add 203.0.113.2/24 dev eth0
            nsenter --net={pin} ip link set eth0 up
            nsenter --net={pin} ip route add {scope.pool} via 203.0.113.1
        """
        subprocess.run(["sh", "-ec", script], check=True, timeout=30)
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")
        neighbour = dataclasses.replace(one, pin=pin)
        assert pods.inside(neighbour, lambda: ask("203.0.113.1", port)) == "203.0.113.2"
        assert pods.inside(neighbour, lambda: ask(one.address, 81)) == "TimeoutError"
        assert pods.inside(neighbour, lambda: ask(one.address, 80)) == "TimeoutError"
        assert pods.kernel.counters()["unpublished"] >= 2
        # What leaves the pool bears the host's address.
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        server = dataclasses.replace(one, pin=pin)
        pods.serve(server, 82)
        assert pods.inside(one, lambda: ask("203.0.113.2", 82)) == "203.0.113.1"
    finally:
        subprocess.run(["ip", "link", "del", name], check=False)
        for server_process in pods.servers:
            server_process.kill()
            server_process.wait(10)
        netns.remove(pin)


def test_a_flushed_ruleset_is_seen_and_made_anew(pods: Pods) -> None:
    port, host = free_port(), host_address()
    one = pods.add(Publish("tcp", port, 80))
    pods.serve(one, 80)
    assert pods.nat.is_whole()
    pods.nat.nft.run(f"flush table ip {pods.scope.table}")
    assert not pods.nat.is_whole()
    assert asyncio.run(pods.nat.ensure(pods.links))
    assert ask("127.0.0.1", port) == host
    pods.nat.nft.run(f"delete table ip {pods.scope.table}")
    assert not pods.nat.is_whole()
    done = asyncio.run(pods.nat.ensure(pods.links))
    assert any("published ports of 1 pods" in line for line in done)
    assert ask("127.0.0.1", port) == host
    assert asyncio.run(pods.nat.ensure(pods.links)) == []


def test_calls_at_the_same_time_insert_one_rule_each(pods: Pods) -> None:
    policy = subprocess.run(["iptables", "-w", "10", "-S", "FORWARD"], capture_output=True, check=True).stdout
    if b"-P FORWARD DROP" not in policy:
        pytest.skip("missing: an iptables FORWARD chain whose policy is DROP (Docker sets it)")
    asyncio.run(pods.nat.remove())

    async def many() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(pods.nat.ensure())

    asyncio.run(many())
    rules = subprocess.run(["iptables", "-w", "10", "-S", "FORWARD"], capture_output=True, check=True).stdout.decode()
    assert rules.count(f"casemate:{pods.scope.table}") == 2
    assert len(asyncio.run(pods.nat.remove())) == 3


def test_a_foreign_table_is_not_touched_and_its_drop_is_reported(pods: Pods, scope: Scope) -> None:
    foreign = f"{scope.table}_x"
    script = (
        f"add table ip {foreign}\nadd chain ip {foreign} f {{ type filter hook forward priority 10; policy accept; }}"
    )
    pods.nat.nft.run(script)
    try:
        assert not any(foreign in line for line in pods.nat.forward_obstacles())
        # A policy of drop for a moment would stop the other tests on this host: only the answer is looked at.
        found = nft_netlink.base_chains()
        assert nft_netlink.BaseChain("ip", foreign, "f", 2, 1) in found
        drops = nft_netlink.BaseChain("inet", foreign, "f", 2, 0)
        ours = nft_netlink.BaseChain("ip", "filter", "FORWARD", 2, 0)
        assert pods.nat.forward_obstacles([*found, drops, ours])[-1] == f"inet {foreign} f"
    finally:
        pods.nat.nft.delete_table("ip", foreign)


def test_a_pod_is_made_twice_and_removed_twice(pods: Pods) -> None:
    link = pods.add()
    asyncio.run(links.apply(link))  # in the namespace that is there: the pair is made anew
    assert len(links.found(pods.scope.link_prefix)) == 1
    asyncio.run(links.remove(link.pin, link.interface))
    asyncio.run(links.remove(link.pin, link.interface))
    # Made anew at once, while the kernel still takes the old pair away.
    asyncio.run(links.apply(link))
    pods.serve(link, 80)
    assert ask(link.address, 80) == "TimeoutError", "another interface, that nobody has let in"
    pods.know(link)
    assert ask(link.address, 80) == GATEWAY


def test_what_lies_in_the_namespaces_place_is_not_overwritten(pods: Pods) -> None:
    link = pods.add()
    asyncio.run(links.remove(link.pin, link.interface, wait=True))
    link.pin.write_text("somebody's")
    for work in (links.apply(link), links.apply_loopback_only(link.pin)):
        with pytest.raises(links.LinkExists):
            asyncio.run(work)
    assert link.pin.read_text() == "somebody's"


def test_an_interface_without_a_namespace_is_taken_over(pods: Pods) -> None:
    """What a crash between two steps leaves."""
    link = pods.add()
    asyncio.run(links.remove(link.pin, link.interface, wait=True))
    peer = f"{pods.scope.link_prefix}peer"
    subprocess.run(["ip", "link", "add", link.interface, "type", "veth", "peer", "name", peer], check=True)
    asyncio.run(links.apply(link))
    (found,) = links.found(pods.scope.link_prefix)
    assert found.up


def test_a_failure_in_the_middle_leaves_nothing(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rtnetlink.RouteSocket.run

    def fail(self: rtnetlink.RouteSocket, *wanted: Message) -> list[list[bytes]]:
        if any(one.what.startswith("route") for one in wanted):
            raise rtnetlink.NetlinkFailed("adding a route", 105)
        return run(self, *wanted)

    link = pods.add()
    asyncio.run(links.remove(link.pin, link.interface, wait=True))
    with monkeypatch.context() as patch:
        patch.setattr(rtnetlink.RouteSocket, "run", fail)
        with pytest.raises(rtnetlink.NetlinkFailed, match="ENOBUFS"):
            asyncio.run(links.apply(link))
    assert not link.pin.exists()
    assert links.found(pods.scope.link_prefix) == []


def test_removing_takes_all_away_and_says_so(pods: Pods) -> None:
    pods.add(Publish("tcp", free_port(), 80))
    done = asyncio.run(pods.nat.remove())
    assert done[0] == f"removed nftables table ip {pods.scope.table}"
    assert asyncio.run(pods.nat.remove()) == []
    assert ("ip", pods.scope.table) not in pods.nat.nft.tables()


def test_an_nft_error_is_named_and_its_transaction_undone(pods: Pods) -> None:
    table = pods.scope.table
    with pytest.raises(nft.NftFailed):
        pods.nat.nft.run(f"add set ip {table} extra {{ type ipv4_addr; }}\nadd rule ip {table} nope accept\n")
    assert not any(row.get("set", {}).get("name") == "extra" for row in pods.nat.nft.table("ip", table) or ())


def test_the_default_mtu_is_the_routes() -> None:
    assert links.default_mtu_bytes(1234) == 1234
    assert 576 <= links.default_mtu_bytes(0) <= 65535
