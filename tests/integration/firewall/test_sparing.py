"""The program at an interface: it says yes to plain packets alone, and nothing depends on its being there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.integration.firewall.lab import (
    ACK,
    GATEWAY,
    MAC_A,
    MAC_B,
    ROUTER_MAC,
    TCP,
    UDP,
    Lab,
    Packet,
    address,
    inside,
)

from casemate.host import bpf, rtnetlink, tun
from casemate.hostd import sparing as bringing
from casemate.hostd.sparing import Interface
from casemate.network.firewall import sparing

A, B = "192.168.5.1", "192.168.5.2"
_LOOK = f"""
table inet look {{
    chain look {{ type filter hook prerouting priority -449; meta priority {sparing.SPARED:#x} counter; }};
    chain later {{ type filter hook forward priority -300; meta priority {sparing.SPARED:#x} counter drop; }};
}}
"""
_ROUTER, _OWN = rtnetlink.mac_bytes(ROUTER_MAC), rtnetlink.mac_bytes(MAC_A)
_IPV4, _ARP, _IPV6, _TAGGED = b"\x08\0", b"\x08\x06", b"\x86\xdd", b"\x81\0"


def _nft(lab: Lab, *words: str) -> str:
    net = f"--net=/proc/{os.getpid()}/fd/{lab.router}"
    return subprocess.run(["nsenter", net, "nft", *words], check=True, capture_output=True, text=True).stdout


def _spared(lab: Lab) -> int:
    """Packets that bore the word of a program when they met what comes after the guard. (Who is forwarded bears it no
    more, or would be dropped.)"""
    listing = json.loads(_nft(lab, "-j", "list", "chain", "inet", "look", "look"))["nftables"]
    (rule,) = [one["rule"] for one in listing if "rule" in one]
    return int(next(one["counter"]["packets"] for one in rule["expr"] if "counter" in one))


@pytest.fixture
def spared(lab: Lab) -> Iterator[Callable[[], int]]:
    """A is at its interface, with its program; how many packets were spared since the last call."""
    if not lab.kernel.spec.spares:
        pytest.skip("missing: BPF programs at interfaces (Linux 6.6)")
    lab.route([A], "cm-a", MAC_A)
    lab.route([B])
    lab.make([*lab.source("cm-a", MAC_A, A), *lab.source("cm-b", MAC_B, B)], generation=0)
    lab.flush_connections()
    _nft(lab, _LOOK)
    index, last = lab.indexes["cm-a"], 0
    inside(lab.router, lambda: bringing.bring(Interface(index, address(A))))

    def since() -> int:
        nonlocal last
        before, last = last, _spared(lab)
        return last - before

    yield since
    inside(lab.router, lambda: _take(index))
    _nft(lab, "delete", "table", "inet", "look")


def _take(index: int) -> None:
    """By hand, as anybody with the right may."""
    for number, _ in bpf.attached_ingress(index):
        descriptor = bpf.by_number(number)
        bpf.detach_ingress(index, descriptor)
        os.close(descriptor)


def _ethernet(kind: bytes, body: bytes, to: bytes = _ROUTER) -> bytes:
    return to + _OWN + kind + body


def _ip(first: int, body: bytes) -> bytes:
    """*body*, a packet, with another first byte of its header."""
    return bytes([first]) + body[1:]


PLAIN = Packet(A, B, UDP, 53)
_BYTES = PLAIN.bytes()
_OPTIONS = Packet(A, B, UDP, 53, options=b"\x94\x04\0\0").bytes()
_TO_ALL = b"\xff" * 6
#: What the program must not say yes to, by what it is.
OTHERS = {
    "another's address": _ethernet(_IPV4, Packet("192.168.5.9", B, UDP).bytes()),
    "the host's own address": _ethernet(_IPV4, Packet("169.254.1.1", B, UDP).bytes()),
    "first part": _ethernet(_IPV4, Packet(A, B, UDP, fragment=0x2000).bytes()),
    "last part": _ethernet(_IPV4, Packet(A, B, UDP, fragment=1).bytes()),
    "part far behind": _ethernet(_IPV4, Packet(A, B, UDP, fragment=0x1FFF).bytes()),
    "options": _ethernet(_IPV4, _OPTIONS),
    "header too short": _ethernet(_IPV4, _ip(0x44, _BYTES)),
    "version 6 in an IPv4 frame": _ethernet(_IPV4, _ip(0x65, _BYTES)),
    "IPv6": _ethernet(_IPV6, _ip(0x60, _BYTES)),
    "IPv4 in an IPv6 frame": _ethernet(_IPV6, _BYTES),
    "ARP": _ethernet(_ARP, struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, _OWN, address(A), bytes(6), GATEWAY)),
    "IPv4 in an ARP frame": _ethernet(_ARP, _BYTES),
    "priority tag": _ethernet(_TAGGED, b"\xe0\0" + _IPV4 + _BYTES),
    "VLAN tag": _ethernet(_TAGGED, b"\0\5" + _IPV4 + _BYTES),
    "two tags": _ethernet(b"\x88\xa8", b"\0\5" + _TAGGED + b"\0\5" + _IPV4 + _BYTES),
    "multicast": _ethernet(_IPV4, Packet(A, "224.0.0.251", UDP).bytes()),
    "multicast by its own address": _ethernet(_IPV4, Packet(A, "224.0.0.251", UDP).bytes(), b"\1\0\x5e\0\0\xfb"),
    "reserved": _ethernet(_IPV4, Packet(A, "240.0.0.1", UDP).bytes()),
    "to all": _ethernet(_IPV4, Packet(A, "255.255.255.255", UDP).bytes(), _TO_ALL),
    "a packet for one in a frame for all": _ethernet(_IPV4, _BYTES, _TO_ALL),
    "somebody else's frame": _ethernet(_IPV4, _BYTES, rtnetlink.mac_bytes(MAC_B)),
    "header cut short": _ethernet(_IPV4, _BYTES[:19]),
    "no more than a frame's head": _ethernet(_IPV4, b""),
}


def _take_rows(lab: Lab) -> None:
    asyncio.run(lab.kernel.take(lab.source("cm-a", MAC_A, A)))


def test_plain_packets_are_spared_the_guard_and_without_the_program_all_goes_on(
    lab: Lab, spared: Callable[[], int]
) -> None:
    index = lab.indexes["cm-a"]
    assert [name for _, name in inside(lab.router, lambda: bpf.attached_ingress(index))] == [sparing.name(address(A))]
    assert lab.connect(A, B)
    assert spared() == 2, "what A says of a handshake; B has no program"
    more = Packet(A, B, TCP, flags=ACK, sequence=1001, acknowledged=5001, payload=b"x")
    inside(lab.router, lambda: _take(index))
    assert lab.passes([more]) == [True], "the guard looked at it, and let it on"
    assert spared() == 0
    inside(lab.router, lambda: bringing.bring(Interface(index, address(A))))
    _take_rows(lab)
    assert lab.passes([more]) == [True], "the guard would have dropped it"
    assert spared() == 1
    inside(lab.router, lambda: bringing.silence(Interface(index, address(A))))
    assert lab.passes([more]) == [False], "the program says nothing any more, and the guard knows no such pod"
    assert lab.kernel.counters()["spoofed"] == 1


def test_nothing_but_plain_packets_is_spared(lab: Lab, spared: Callable[[], int]) -> None:
    for words, frame in OTHERS.items():
        lab.a.raw.send(frame)
        assert lab.passes([PLAIN]) == [True], words
        assert spared() == 1, f"{words}: only the plain packet after it"


def test_a_pod_cannot_say_it_of_its_own_packets(lab: Lab, spared: Callable[[], int]) -> None:
    forged = _ethernet(_IPV4, Packet("192.168.5.9", B, UDP).bytes())
    _take_rows(lab)
    inside(lab.router, lambda: _take(lab.indexes["cm-a"]))
    raw = lab.a.raw
    try:
        for option in (socket.SO_PRIORITY, socket.SO_MARK):
            raw.setsockopt(socket.SOL_SOCKET, option, sparing.SPARED)
            raw.send(forged)
            assert lab.passes([PLAIN]) == [False]
            assert spared() == 0
    finally:
        for option in (socket.SO_PRIORITY, socket.SO_MARK):
            raw.setsockopt(socket.SOL_SOCKET, option, 0)
    assert lab.kernel.counters()["spoofed"] == 4


def test_who_begins_with_anothers_hardware_address_is_stopped_all_the_same(lab: Lab, spared: Callable[[], int]) -> None:
    assert lab.passes([PLAIN]) == [True]
    spared()
    lab.flush_connections()
    lab.a.send([PLAIN], mac=rtnetlink.mac_bytes("0e:01:00:00:00:77"))
    assert lab.b.numbers() == set()
    assert spared() == 1, "no more than the guard's first rule does the program ask for that address"
    assert lab.kernel.counters()["spoofed"] == 1


def test_a_tap_is_served_the_same_way(lab: Lab, spared: Callable[[], int]) -> None:
    guest = "192.168.5.3"
    mac = rtnetlink.mac_bytes("0e:01:00:00:00:0d")
    with contextlib.ExitStack() as stack:
        tap = inside(lab.router, lambda: tun.open_tap("cm-t"))
        stack.callback(os.close, tap)

        def up() -> int:
            with rtnetlink.RouteSocket() as host:
                link = host.link("cm-t")
                assert link is not None
                host.set_address(link.index, ROUTER_MAC, 1500)
                host.set_up(link.index)
                host.add_route(f"{guest}/32", link.index)
                bringing.bring(Interface(link.index, address(guest)))
                return link.index

        index = inside(lab.router, up)
        lab.indexes["cm-t"] = index
        stack.callback(lab.indexes.pop, "cm-t")
        asyncio.run(lab.kernel.put(lab.source("cm-t", mac.hex(":"), guest)))
        plain = Packet(guest, B, UDP, 53, number=77)
        os.write(tap, _ROUTER + mac + _IPV4 + plain.bytes())
        assert (77, UDP) in lab.b.numbers()
        assert spared() == 1
        for words, frame in OTHERS.items():
            # The same things, of the guest's address.
            own = frame.replace(address(A), address(guest))
            with contextlib.suppress(OSError):
                os.write(tap, own)
            os.write(tap, _ROUTER + mac + _IPV4 + plain.bytes())
            assert (77, UDP) in lab.b.numbers(), words
            assert spared() == 1, words


def test_a_program_is_replaced_and_not_added(lab: Lab, spared: Callable[[], int]) -> None:
    index = lab.indexes["cm-a"]

    def again() -> list[str]:
        bringing.bring(Interface(index, address(B)))
        return [name for _, name in bpf.attached_ingress(index)]

    assert inside(lab.router, again) == [sparing.name(address(B))]
    assert lab.passes([PLAIN]) == [True]
    assert spared() == 0, "the address is another one's now"


def test_the_place_of_somebody_elses_program_is_left_alone(lab: Lab, spared: Callable[[], int]) -> None:
    index = lab.indexes["cm-a"]

    def theirs() -> list[str]:
        _take(index)
        descriptor = bpf.load_ingress("theirs", sparing.nothing())
        bpf.attach_ingress(index, descriptor)
        os.close(descriptor)
        bringing.bring(Interface(index, address(A)))
        bringing.silence(Interface(index, address(A)))
        return [name for _, name in bpf.attached_ingress(index)]

    assert inside(lab.router, theirs) == ["theirs", sparing.NOTHING]
    assert lab.passes([PLAIN]) == [True]
    assert spared() == 0
