"""A pod's link made, looked at and taken away (the plan is :mod:`casemate.network.plan`'s)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.host import netns, rtnetlink, syscalls, sysctls, tun
from casemate.host import route_messages as messages
from casemate.network.plan import GATEWAY, PodLink
from casemate.spec.errors import Conflict, HostLacks

#: Set inside the pod. The namespace belongs to the pod's user namespace, and its root has no CAP_NET_ADMIN there
#: (unless somebody with the grant gave it), so it cannot change addresses or routes; what programs are used to
#: doing with CAP_NET_BIND_SERVICE and CAP_NET_RAW is opened by these instead.
_POD_SYSCTLS: tuple[tuple[str, str], ...] = (
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    # Web servers bind port 80 as they do everywhere.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    # `ping` without raw sockets, for every id of every pod's range.
    ("net/ipv4/ping_group_range", "0 4294967294"),
)
#: Of the host's end, before it is up. Strict reverse path filter: only the pod's own address may come in.
_HOST_CONF = {
    "rp_filter": 1,
    "accept_redirects": 0,
    "send_redirects": 0,
    "forwarding": 1,
    "arp_ignore": 8,
}
#: A guest asks for the gateway by ARP, and is answered for the one address that is on its tap.
_TAP_CONF = _HOST_CONF | {"arp_ignore": 1}
#: Lets a connection from the host's own 127.0.0.1 leave to a pod with published ports; the firewall's table
#: drops whatever comes from a pod *to* 127.0.0.0/8.
_PUBLISH_CONF = {"route_localnet": 1}


class LinkExists(Conflict):
    code = "network.link_exists"
    title = "The pod has a link already"
    remedy = "Remove the pod, or let `casemate system prune` remove what a crash left."


class TapUnavailable(HostLacks):
    code = "network.tap_unavailable"
    title = "The host cannot make a tap interface, which the network of a virtual machine needs"
    remedy = "modprobe tun; or --network none"


@dataclass(frozen=True, slots=True)
class FoundLink:
    """One of our interfaces as it is in the kernel."""

    interface: str
    up: bool
    mtu_bytes: int


async def apply(link: PodLink, waiting: str = "") -> None:
    """Make the namespace and the pair, with addresses, routes and neighbours; 2 to 3 ms. Undone when it fails.

    *waiting*: the tap of a machine that waits, which is renamed for the pod instead of making one.

    Published ports are :mod:`casemate.network.nat`'s. Raises :class:`LinkExists`,
    :class:`~casemate.host.rtnetlink.NetlinkFailed`.
    """
    if link.tap:
        await netns.in_own_thread(lambda: _make_tap(link, waiting))
        return
    if netns.is_pinned(link.pin):
        try:
            # In a thread: the kernel's one lock for links is held for 20 ms while some other interface is deleted.
            await netns.in_own_thread(lambda: _into_pinned(link))
        except BaseException:
            netns.remove(link.pin)
            raise
        return
    link.pin.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    try:
        inside = await _namespace(link.pin)
    except FileExistsError as error:
        raise LinkExists(f"{link.pin} exists", pod=link.pod) from error
    own = rtnetlink.open_netns(link.pin)
    try:
        # In a thread: the kernel's one lock for links is held for 20 ms while some other interface is deleted.
        await netns.in_own_thread(lambda: _connect(link, inside, own))
    except BaseException:
        netns.remove(link.pin)
        raise
    finally:
        inside.close()
        os.close(own)


async def apply_loopback_only(pin: Path) -> None:
    """A namespace with nothing but its loopback (``--network none``). Raises :class:`LinkExists`."""
    pin.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    try:
        (await _namespace(pin)).close()
    except FileExistsError as error:
        raise LinkExists(f"{pin} exists") from error


async def _namespace(pin: Path) -> rtnetlink.RouteSocket:
    """A socket in the namespace at *pin*: one that an isolation level made for the pod's own user, or a new one."""
    if not netns.is_pinned(pin):
        return await netns.create(pin, _enter_pod)
    number = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await netns.inside(number, _enter_pod)
    finally:
        os.close(number)


def _enter_pod() -> rtnetlink.RouteSocket:
    """Runs in a thread inside the new namespace: a socket of it, for use from outside."""
    with sysctls.view() as proc:
        for name, value in _POD_SYSCTLS:
            sysctls.write(proc, name, value)
    inside = rtnetlink.RouteSocket()
    inside.set_up(1)  # lo is 1 in every new namespace
    return inside


def _into_pinned(link: PodLink) -> None:
    """All of a link whose namespace an isolation level has made, in one thread of its own: into it, and back."""
    own = rtnetlink.open_netns(link.pin)
    home = rtnetlink.open_netns(Path("/proc/thread-self/ns/net"))
    try:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        with _enter_pod() as inside:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
            _connect(link, inside, own)
    finally:
        os.close(own)
        os.close(home)


def _connect(link: PodLink, inside: rtnetlink.RouteSocket, own: int) -> None:
    with rtnetlink.RouteSocket() as host:
        _add_pair(host, link, own)
        try:
            _host_end(host, link, _TAP_CONF if link.asks else _HOST_CONF)
            _pod_end(inside, link)
        except BaseException:
            host.delete_link(link.interface)
            raise


def _host_end(host: rtnetlink.RouteSocket, link: PodLink, conf: Mapping[str, int]) -> None:
    """The host's end of a pair, or a tap: the same address, route, neighbour and checks."""
    outer = host.link(link.interface)
    assert outer is not None, link.interface
    with sysctls.view() as proc:
        sysctls.write(proc, f"net/ipv6/conf/{link.interface}/disable_ipv6", "1")
    if link.tap:
        host.set_address(outer.index, link.host_mac, link.mtu_bytes)
    host.run(messages.inet(outer.index, {**conf, **(_PUBLISH_CONF if link.ports else {})}))
    host.run(
        messages.up(outer.index),
        messages.address(outer.index, GATEWAY, link_scope=True),
        messages.neighbour(outer.index, link.address, link.pod_mac),
        messages.route(f"{link.address}/32", outer.index),
    )


def _pod_end(inside: rtnetlink.RouteSocket, link: PodLink) -> None:
    inner = inside.link(link.pod_interface)
    assert inner is not None, link.pod_interface
    inside.run(
        messages.address(inner.index, link.address),
        messages.up(inner.index),
        messages.neighbour(inner.index, GATEWAY, link.host_mac),
        messages.route("0.0.0.0/0", inner.index, gateway=GATEWAY),
    )


async def give_address(link: PodLink) -> None:
    """Give the pod's end its address, neighbour and route again: a sandbox with a network stack of its own takes
    the address off. Changes nothing where they are there."""
    number = os.open(link.pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = await netns.inside(number, rtnetlink.RouteSocket)
    finally:
        os.close(number)
    with inside:
        _pod_end(inside, link)


def _make_tap(link: PodLink, waiting: str) -> None:
    """The host's side of a pod that is a virtual machine; its other end is opened by name when the machine starts, or
    is that of a machine already."""
    with rtnetlink.RouteSocket() as host:
        if host.link(link.interface) is not None:
            # What a crash left: nothing is sure of how it was configured.
            host.delete_link(link.interface)
        try:
            found = host.link(waiting) if waiting else None
            if found is not None:
                host.rename(found.index, link.interface)
            else:
                tun.make_tap(link.interface)
            _host_end(host, link, _TAP_CONF)
        except BaseException as error:
            host.delete_link(link.interface)
            if isinstance(error, OSError):
                raise TapUnavailable(f"tap {link.interface}: {tun.DEVICE}: {error.strerror}") from error
            raise


def _add_pair(host: rtnetlink.RouteSocket, link: PodLink, own: int) -> None:
    for last in (False, True):
        try:
            host.add_veth(
                link.interface,
                link.host_mac,
                peer_name=link.pod_interface,
                peer_mac=link.pod_mac,
                mtu_bytes=link.mtu_bytes,
                peer_netns_fd=own,
            )
        except rtnetlink.NetlinkFailed as error:
            if error.errno != errno.EEXIST or last:
                raise
            # The pod's last namespace is still being torn down by the kernel, or a crash left the interface.
            host.delete_link(link.interface)
        else:
            return


async def remove(pin: Path, interface: str, *, wait: bool = False) -> None:
    """Take a pod's link away; may be repeated.

    Without the pin and without processes the kernel deletes the pair by itself, soon, and many at a time; to ask
    for it and to *wait* takes 20 to 40 ms.
    """
    netns.remove(pin)
    if wait:
        await delete_interface(interface)


async def delete_interface(interface: str) -> bool:
    """Delete one of our interfaces; False when it is not there (any more)."""

    def body() -> bool:
        with rtnetlink.RouteSocket() as host:
            return host.delete_link(interface)

    return await netns.in_own_thread(body)


def found(prefix: str) -> list[FoundLink]:
    """Our interfaces in the kernel."""
    with rtnetlink.RouteSocket() as host:
        return [FoundLink(one.name, one.up, one.mtu_bytes) for one in host.links(prefix)]


def taps(prefix: str) -> list[str]:
    """Our interfaces that are taps."""
    return [one.interface for one in found(prefix) if tun.is_tap(one.interface)]


def exists(interface: str) -> bool:
    """Whether the interface is in the kernel."""
    with rtnetlink.RouteSocket() as host:
        return host.link(interface) is not None


def index(interface: str) -> int:
    """The kernel's number of an interface, never given twice; 0 where it is not there."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def dropped_ipv6(prefix: str) -> int:
    """IPv6 packets that came from pods and were dropped by their interfaces, on which IPv6 is off; some 20 us a pod."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir("/proc/net/dev_snmp6") as found:
        for one in found:
            if not one.name.startswith(prefix):
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                total += int(Path(one.path).read_text().partition("Ip6InDiscards")[2].split(None, 1)[0])
    return total


def pins(netns_folder: Path) -> list[Path]:
    """The pins below *netns_folder*, also those whose namespace is gone (a reboot)."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(netns_folder.iterdir())
    return []


def default_mtu_bytes(setting: int) -> int:
    """*setting*, or that of the interface with the default route, or Ethernet's 1500."""
    if setting:
        return setting
    with rtnetlink.RouteSocket() as host:
        link = host.default_route_link()
    return link.mtu_bytes if link is not None and link.mtu_bytes >= 576 else 1500
