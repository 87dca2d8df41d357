"""The firewall's table: chains and rules. Pure; :mod:`casemate.network.firewall.sets` has the maps.

What a packet meets, in words:

- *guard*, before connection tracking: what a pod sends comes from its own interface and bears its own address, no IP
  options, and is for nobody's multicast; its parts of packets are bounded (:mod:`casemate.network.firewall.guard`).
  Most packets are spared it (:mod:`casemate.network.firewall.sparing`);
- *hold*, after published ports are translated, while a pod is held: the first packets to it wait in a queue;
- *forward*, where packets are forwarded: a connection that was judged under the present generation passes, and so do
  first packets that an exact port allows (:mod:`casemate.network.firewall.fast`); others go on where a pod's interface
  is at one end. What begins elsewhere and was not translated on its way to a pod is dropped: a neighbour on the wire
  that adds a route to the pool gets nowhere. *switch*: the same where packets come to the host itself;
- *leaving*, what begins in a pod: with its own hardware address; not to link-local addresses (but the gateway) or a
  cloud's metadata service; and no ICMP error about a packet that was not sent to this pod. *to_host*: the same, and
  nothing at all to the host's 127.0.0.0/8, which is routed where a pod has published ports;
- *young*, packets of a connection that has just been let through: see :mod:`casemate.network.firewall.young`;
- *pod*: what is no valid packet of a connection is dropped; every other is judged;
- *judge*: both ends' identities are looked up (by the tracked connection, so that answers and translated packets are
  judged as their first packet was) and kept in the connection's label; then the verdict, by exact port, interval of
  ports, pair, and the same three for the bases of both identities; nothing: deny.
- *again*, the same for a connection that has a label: see :mod:`casemate.network.firewall.again`.

The label of a connection (host's order): 0, source identity, destination identity, as they were when it was judged
first; bits of it are never taken away. Its mark: that it was let through (the highest bit), under which generation,
whether it is young (4), and (the lowest two) 1 + the verdict that let it.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from casemate.host import nft_expressions as e
from casemate.host.nft_netlink import Batch
from casemate.network.firewall import again, fast, guard, sparing, young
from casemate.network.firewall.guard import counted, dropped, ours
from casemate.network.firewall.kept import Marks
from casemate.network.firewall.kept import marks as marks_of_kept
from casemate.network.firewall.sets import ALLOW, AUDIT, PAIR, REFER
from casemate.network.flowlog import PREFIX, VERDICT_COPY_BYTES

#: Marks that hostd gives back with a queued packet that goes through the chain again; exact values, not bits, so
#: that other programs' marks are left alone.
MARK_ANSWERED, MARK_REFUSED, MARK_DENIED = 0x0CA5E001, 0x0CA5E002, 0x0CA5E003
COUNTERS = (
    "spoofed", "options", "link_local", "multicast", "metadata", "ipv6", "invalid", "stale", "crowded",
    "parts", "loopback", "unpublished",
    "allowed", "audited", "referred", "referral_rate", "answered", "denied", "held", "refused",
)  # fmt: skip
#: In a log group a packet bears this: what became of it.
LOG_DENIED, LOG_AUDITED = f"{PREFIX}deny", f"{PREFIX}audit"
_TCP, _UDP, _SCTP, _ICMP, _ICMP6 = 6, 17, 132, 1, 58
_V4, _V6 = 2, 10
_PREROUTING, _INPUT, _FORWARD, _OUTPUT = range(4)
#: Before defragmentation (-400): a part that bears another's address must not be joined to what that one sends.
_GUARD_PRIORITY = -450
#: After the destination is translated (-100).
_HOLD_PRIORITY = -90
#: Before the filter chains (0) of others and of our other table.
_POD_PRIORITY = -5
_RATE_FORGET_MS = 60_000
#: Of a connection's mark: it was let through. Generations have the 28 bits below it.
_LET, LAST_GENERATION = 1 << 31, (1 << 28) - 1
#: Of the three bits below: the verdict.
_VERDICT = 3
#: linux/netfilter/nf_conntrack_common.h: IPS_DST_NAT
_TRANSLATED = 1 << 5


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What the rules depend on. *queue*: number of the packet queue of referrals; the next is that of holds, and the
    one after it that of referred packets on the way back.

    *queue_target*: the kernel has no expression for queues, xtables' target serves. *only_published*: from elsewhere
    pods are reached by published ports alone. *hello_group*: the log group of the first packets of TLS; 0: the kernel
    cannot tell them. *brief*: it can forget closed connections sooner than others. *spares*: interfaces may have
    programs that spare plain packets the guard.
    """

    table: str
    prefix: str
    pool: ipaddress.IPv4Network
    gateway: bytes
    queue: int
    log_group: int
    queue_target: bool = False
    referrals_per_second: int = 2000
    referral_burst: int = 512
    only_published: bool = True
    hello_group: int = 0
    brief: bool = False
    spares: bool = False

    @property
    def kept(self) -> Marks:
        """Marks of packets that go through the relay of kept connections."""
        return marks_of_kept(self.table)

    def queue_rule(self, offset: int) -> bytes:
        number = self.queue + offset
        return e.queue_by_target(number) if self.queue_target else e.queue(number)


def add_table(batch: Batch, spec: TableSpec) -> None:
    """Chains, counters and rules, without any policy in force; what is there of them is written over. The sets must be
    there, or in the batch before."""
    for counter in COUNTERS:
        batch.new_counter(counter)
    if spec.brief:
        young.add_timeouts(batch)
    for name in PLAIN_CHAINS:
        batch.new_chain(name)
    batch.new_chain("guard", kind="filter", hook=_PREROUTING, priority=_GUARD_PRIORITY)
    batch.new_chain("forward", kind="filter", hook=_FORWARD, priority=_POD_PRIORITY)
    batch.new_chain("input", kind="filter", hook=_INPUT, priority=_POD_PRIORITY)
    batch.new_chain("relayed", kind="filter", hook=_OUTPUT, priority=_POD_PRIORITY)
    for name in (*PLAIN_CHAINS, *BASE_CHAINS):
        batch.flush_chain(name)
    if spec.spares:
        batch.new_rule("guard", sparing.rule())
    for chain, rules in (
        guard.chains(spec.prefix, spec.gateway, spec.log_group)
        | _hold(spec)
        | _pod(spec)
        | _judge()
        | again.chains(spec.pool)
        | _find(spec)
        | _verdicts()
        | _refer(spec)
        | _deny(spec)
        | (young.chains(spec.hello_group) if spec.hello_group else {})
    ).items():
        for rule in rules:
            batch.new_rule(chain, rule)


PLAIN_CHAINS = (
    "deny", "passed", "allow", "audit", "audited", "refer", "hold",
    "verdict", "port_verdict", "icmp_verdict", "other_verdict", "find4", "find6",
    "judge", "decide", "pod", "leaving", "new", "unknown", "switch", "to_host",
    *again.CHAINS, *guard.CHAINS, *young.CHAINS,
)  # fmt: skip
BASE_CHAINS = ("guard", "forward", "input", "relayed")
#: Chains whose rules have the generation in them.
GENERATION_CHAINS = ("forward", "switch", "decide", "allow", "audited", "passed")
#: Chains that look for held pods: made when one is held first (a hook costs every packet something), empty while none
#: is. They are not deleted: the kernel drops all packets that wait in queues where a hook goes.
HOLD_CHAINS = ("pre", "output")


def add_switch(batch: Batch, spec: TableSpec, generation: int) -> None:
    """The rules that know the *generation*; 0: no policy is in force, everything passes. The chains must be empty."""
    # Never "unless it is known: go on": where a packet has no connection, reading its mark ends the rule.
    # ICMP errors have the mark of the connection that they are about; what a pod says so is looked at first.
    own, accept = _not_about_another(), e.verdict(e.ACCEPT)
    if generation:
        known = _let_through(generation)
        # The mark first: it tells packets that begin something by half as many expressions.
        batch.new_rule("forward", _let_through(generation, grown=True) + own + accept)
        if spec.hello_group:
            batch.new_rule("forward", known + own + e.verdict(e.GOTO, "young"))
    else:
        known = e.state(e.STATE_ESTABLISHED | e.STATE_RELATED)
        if spec.hello_group:
            batch.new_rule("forward", own + known + young.is_old() + accept)
            batch.new_rule("forward", own + known + young.hello(spec.hello_group) + accept)
        batch.new_rule("forward", own + known + accept)
    batch.new_rule("switch", known + accept)
    if generation and fast.serves(spec.pool):
        batch.new_rule("forward", e.verdict(e.JUMP, "unknown"))
    if spec.only_published:
        batch.new_rule("forward", _unpublished(spec.prefix))
    batch.new_rule("forward", e.verdict(e.GOTO, "new"))
    batch.new_rule("switch", e.verdict(e.GOTO, "pod"))
    if spec.brief and not generation:
        batch.new_rule("decide", young.begins(brief=True))
    batch.new_rule("decide", e.verdict(e.GOTO, "judge") if generation else accept)
    for chain, counter, verdict in (
        ("allow", "allowed", ALLOW), ("audited", "audited", AUDIT), ("passed", "answered", REFER),
    ):  # fmt: skip
        mark, let = _LET | (generation & LAST_GENERATION) << 3 | (1 + verdict), counted(counter, e.ACCEPT)
        if spec.hello_group or spec.brief:
            bit = young.YOUNG if spec.hello_group else 0
            batch.new_rule(chain, young.begins(brief=spec.brief) + e.set_connection_mark(mark | bit) + let)
        batch.new_rule(chain, e.set_connection_mark(mark) + let)


def _let_through(generation: int, *, grown: bool = False) -> bytes:
    """Goes on where the connection was let through under *generation*; *grown*: and is not young any more."""
    wanted = _LET | (generation & LAST_GENERATION) << 3
    looked_at = 0xFFFFFFF8 | (young.YOUNG if grown else 0)
    return e.tracked(e.CT_MARK, 0) + e.masked(0, struct.pack("=I", looked_at), struct.pack("=I", wanted))


def _not_about_another() -> bytes:
    """Goes on where the packet is its connection's own, and not one about it."""
    return e.tracked(e.CT_STATE, 0) + e.compare(0, struct.pack("=I", e.STATE_RELATED), e.NEQ)


def _unpublished(prefix: str) -> bytes:
    """Drops what begins elsewhere and leads to a pod otherwise than by a published port."""
    elsewhere = e.meta(e.META_IIFNAME, 0) + e.compare(0, prefix.encode(), e.NEQ)
    status = e.tracked(e.CT_STATUS, 0) + e.masked(0, struct.pack("=I", _TRANSLATED), bytes(4))
    return elsewhere + ours(e.META_OIFNAME, prefix) + e.state(e.STATE_NEW) + status + counted("unpublished", e.DROP)


def _let_by(verdict: int) -> bytes:
    """Goes on where the connection was let through by *verdict*, under whatever generation."""
    wanted = struct.pack("=I", _LET | (1 + verdict))
    return e.tracked(e.CT_MARK, 0) + e.masked(0, struct.pack("=I", _LET | _VERDICT), wanted)


def _only(word: int) -> bytes:
    """A mask of the label's *word* alone."""
    return bytes(4 * word) + b"\xff\xff\xff\xff" + bytes(12 - 4 * word)


def _unlabelled() -> bytes:
    """Goes on where nobody's identity is in the connection's label yet."""
    return e.tracked(e.CT_LABELS, 0) + e.masked(0, _only(1), bytes(16))


def _marked(mark: int) -> bytes:
    return e.meta(e.META_MARK, 0) + e.compare(0, struct.pack("=I", mark))


def _first_packet() -> bytes:
    """The first packet of a TCP connection, by its flags: a port used again is not always new to the kernel."""
    return e.protocol(_TCP) + e.payload(e.TRANSPORT, 13, 1, 0) + e.masked(0, b"\x17", b"\x02")


def add_holds(batch: Batch, spec: TableSpec, holding: bool) -> None:
    """*pre* and *output* with (*holding*) the rules that look for held pods, made where they are not there."""
    batch.new_chain("pre", kind="filter", hook=_PREROUTING, priority=_HOLD_PRIORITY)
    batch.new_chain("output", kind="filter", hook=_OUTPUT, priority=_POD_PRIORITY)
    for name in HOLD_CHAINS:
        batch.flush_chain(name)
    if not holding:
        return
    to_held4 = e.meta(e.META_NFPROTO, 1) + e.compare(1, bytes([_V4])) + e.payload(e.NETWORK, 16, 4, 0)
    to_held6 = e.meta(e.META_NFPROTO, 1) + e.compare(1, bytes([_V6])) + e.payload(e.NETWORK, 24, 16, 0)
    refused = _marked(MARK_REFUSED)
    batch.new_rule("output", _marked(spec.kept.probe) + e.verdict(e.ACCEPT))
    batch.new_rule("pre", refused + e.protocol(_TCP) + e.count("refused") + e.reject_reset())
    batch.new_rule("pre", refused + e.count("refused") + e.reject_prohibited())
    for chain, which in (("pre", b""), ("output", ours(e.META_OIFNAME, spec.prefix))):
        batch.new_rule(chain, which + to_held4 + e.lookup("held4", 0) + e.verdict(e.GOTO, "hold"))
        batch.new_rule(chain, which + to_held6 + e.lookup("held6", 0) + e.verdict(e.GOTO, "hold"))


def _hold(spec: TableSpec) -> dict[str, list[bytes]]:
    wait = e.count("held") + spec.queue_rule(1)
    return {"hold": [_first_packet() + wait, e.protocol(_TCP, e.NEQ) + e.state(e.STATE_NEW) + wait]}


def _pod(spec: TableSpec) -> dict[str, list[bytes]]:
    to_gateway = e.payload(e.NETWORK, 16, 4, 0) + e.compare(0, spec.gateway)
    # Our own resolver may listen on another port of the gateway: what was asked for counts.
    names = e.tracked(e.CT_PROTO_DST, 1, e.ORIGINAL) + e.compare(1, struct.pack("!H", 53)) + e.verdict(e.ACCEPT)
    fresh = e.state(e.STATE_NEW | e.STATE_RELATED)
    new_of = e.state(e.STATE_NEW) + e.meta(e.META_NFPROTO, 1)
    return {
        "input": [
            _marked(spec.kept.back) + e.verdict(e.ACCEPT),
            ours(e.META_IIFNAME, spec.prefix) + e.verdict(e.GOTO, "to_host"),
            # Clients from elsewhere, on their way to the relay; the others bear the answer to a referral.
            *(_marked(one) + e.verdict(e.GOTO, "switch") for one in (spec.kept.kept, MARK_ANSWERED, MARK_DENIED)),
        ],
        # What the relay sends to clients, as if the pod did. A reset opens nothing, and ends what may not be any more.
        "relayed": [
            _marked(spec.kept.down) + e.protocol(_TCP) + e.payload(e.TRANSPORT, 13, 1, 0)
            + e.masked(0, b"\x04", b"\x04") + e.verdict(e.ACCEPT),
            *(_marked(one) + e.verdict(e.GOTO, "switch") for one in (spec.kept.down, MARK_ANSWERED, MARK_DENIED)),
        ],
        "to_host": [
            # Answers to what began at 127.0.0.1 and was translated have it back by now.
            e.payload(e.NETWORK, 16, 1, 0) + e.compare(0, b"\x7f") + e.tracked(e.CT_STATE, 0)
            + e.masked(0, struct.pack("=I", e.STATE_ESTABLISHED | e.STATE_RELATED), bytes(4))
            + counted("loopback", e.DROP),
            fresh + e.verdict(e.JUMP, "fresh4"),
            to_gateway + e.protocol(_UDP) + names,
            to_gateway + e.protocol(_TCP) + names,
            # Answers to what the host itself began: nothing holds the host back.
            e.tracked(e.CT_DIRECTION, 0) + e.compare(0, b"\1") + e.verdict(e.ACCEPT),
            e.verdict(e.GOTO, "switch"),
        ],
        # These look into large maps, so they are in no chain that bears the generation: the kernel goes through all of
        # a map where a rule that looks into it is the first one of its chain to do so (12 ms with 60,000 elements).
        "unknown": fast.rules(spec.pool),
        "new": [
            ours(e.META_IIFNAME, spec.prefix) + e.verdict(e.GOTO, "leaving"),
            ours(e.META_OIFNAME, spec.prefix) + e.verdict(e.GOTO, "pod"),
        ],
        "leaving": [fresh + e.verdict(e.JUMP, "fresh4"), e.verdict(e.GOTO, "pod")],
        "pod": [
            e.state(e.STATE_INVALID) + counted("invalid", e.DROP),
            new_of + e.compare(1, bytes([_V4])) + e.tracked(e.CT_SRC_IP, 0, e.ORIGINAL) + e.lookup("crowded4", 0)
            + dropped("crowded"),
            new_of + e.compare(1, bytes([_V6])) + e.tracked(e.CT_SRC_IP6, 0, e.ORIGINAL) + e.lookup("crowded6", 0)
            + dropped("crowded"),
            e.verdict(e.GOTO, "decide"),
        ],
    }  # fmt: skip


def _judge() -> dict[str, list[bytes]]:
    icmp_answer = e.state(e.STATE_ESTABLISHED) + e.tracked(e.CT_DIRECTION, 0) + e.compare(0, b"\1")
    return {
        "judge": [
            e.meta(e.META_MARK, 0) + e.compare(0, struct.pack("=I", MARK_ANSWERED)) + e.set_mark(0)
            + e.verdict(e.GOTO, "passed"),
            e.meta(e.META_MARK, 0) + e.compare(0, struct.pack("=I", MARK_DENIED)) + e.set_mark(0)
            + e.verdict(e.GOTO, "deny"),
            e.state(e.STATE_RELATED) + e.protocol(_ICMP) + e.verdict(e.ACCEPT),
            e.state(e.STATE_RELATED) + e.protocol(_ICMP6) + e.verdict(e.ACCEPT),
            # ICMP's answers bear another type; they cannot begin anything.
            icmp_answer + e.protocol(_ICMP) + e.verdict(e.ACCEPT),
            icmp_answer + e.protocol(_ICMP6) + e.verdict(e.ACCEPT),
            e.state(e.STATE_NEW) + e.protocol(_TCP) + e.payload(e.TRANSPORT, 13, 1, 0)
            + e.masked(0, b"\x17", b"\x02", e.NEQ) + e.count("stale") + e.reject_reset(),
            e.meta(e.META_NFPROTO, 0) + e.compare(0, bytes([_V4])) + _unlabelled() + e.verdict(e.JUMP, "find4"),
            e.meta(e.META_NFPROTO, 0) + e.compare(0, bytes([_V4])) + e.verdict(e.GOTO, "again"),
            # IPv6 connections that were judged once are not judged again: no pod has an IPv6 address today.
            e.meta(e.META_NFPROTO, 0) + e.compare(0, bytes([_V6])) + _unlabelled() + e.verdict(e.JUMP, "find6"),
            e.verdict(e.GOTO, "deny"),
        ],
    }  # fmt: skip


def _find(spec: TableSpec) -> dict[str, list[bytes]]:
    """Both identities into the label: a rule for each way of finding them, the first that finds both holds.

    Registers: 0 to 3 the label (0, source identity, destination identity, 0); addresses from 4.
    """
    begin = e.immediate(0, bytes(16))
    end = e.add_labels(0) + e.verdict(e.GOTO, "verdict")
    pool, netmask = spec.pool.network_address.packed, spec.pool.netmask.packed

    def outside(at: int) -> bytes:
        """Not of the pool: an address of ours that nobody has must not pass for one of the outside."""
        return e.mask(at, netmask, 12) + e.compare(12, pool, e.NEQ)

    source4, destination4 = e.tracked(e.CT_SRC_IP, 5, e.ORIGINAL), e.tracked(e.CT_SRC_IP, 6, e.REPLY)
    world4 = e.immediate(7, bytes(4))
    both6 = e.tracked(e.CT_SRC_IP6, 4, e.ORIGINAL) + e.tracked(e.CT_SRC_IP6, 8, e.REPLY)
    zero3, zero7 = e.immediate(3, bytes(4)), e.immediate(7, bytes(4))
    return {
        "find4": [
            begin + source4 + destination4 + e.lookup("exact4", 5, into=1) + e.lookup("exact4", 6, into=2) + end,
            begin + source4 + destination4 + e.lookup("viewed4", 5, into=2) + e.lookup("exact4", 5, into=1) + end,
            begin + source4 + e.lookup("exact4", 5, into=1) + world4 + e.tracked(e.CT_SRC_IP, 8, e.REPLY) + outside(8)
            + e.lookup("world4", 7, into=2) + end,
            begin + destination4 + e.lookup("exact4", 6, into=2) + world4 + e.tracked(e.CT_SRC_IP, 8, e.ORIGINAL)
            + outside(8) + e.lookup("world4", 7, into=1) + end,
        ],
        "find6": [
            begin + both6 + e.lookup("exact6", 4, into=1) + e.lookup("exact6", 8, into=2) + end,
            begin + both6 + e.lookup("viewed6", 4, into=2) + e.lookup("exact6", 4, into=1) + end,
            begin + both6 + e.lookup("exact6", 4, into=1) + zero7 + e.lookup("world6", 7, into=2) + end,
            begin + both6 + e.lookup("exact6", 8, into=2) + zero3 + e.lookup("world6", 3, into=1) + end,
        ],
    }  # fmt: skip


def _verdicts() -> dict[str, list[bytes]]:
    """The verdict of the pair in the label: by port, interval, pair; then the same of the bases of both.

    Registers: the label from 12 on; the key 3 to 7 (0, source, destination, protocol, port). The 0 before a key is
    there for nft(8): where a key begins with what a lookup gave, it ends with an assertion, and with it whoever lists
    the host's ruleset; a constant (of 16 bytes) that is written over in part it takes.
    """
    chains: dict[str, list[bytes]] = {
        "verdict": [
            *(e.protocol(number) + e.verdict(e.GOTO, "port_verdict") for number in (_TCP, _UDP, _SCTP)),
            *(e.protocol(number) + e.verdict(e.GOTO, "icmp_verdict") for number in (_ICMP, _ICMP6)),
            e.verdict(e.GOTO, "other_verdict"),
        ]
    }
    pair = e.tracked(e.CT_LABELS, 3)
    # A key cannot begin in the middle of the label: masked, the whole of it is the key.
    bases = (
        e.tracked(e.CT_LABELS, 12) + e.immediate(3, bytes(16))
        + e.mask(12, _only(1), 8) + e.lookup("egress", 8, into=4) + e.mask(12, _only(2), 8)
        + e.lookup("ingress", 8, into=5)
    )  # fmt: skip
    rest = e.immediate(6, bytes([PAIR, 0, 0, 0])) + e.immediate(7, bytes(4))
    places = {
        "port_verdict": e.meta(e.META_L4PROTO, 6) + e.tracked(e.CT_PROTO_SRC, 7, e.REPLY),
        "icmp_verdict": e.immediate(6, bytes([_ICMP, 0, 0, 0])) + e.payload(e.TRANSPORT, 0, 1, 7),
        "other_verdict": e.immediate(6, bytes(4)) + e.immediate(7, bytes(4)),
    }
    for chain, place in places.items():
        chains[chain] = [
            asked + at + _go(name, 3, "verdicts")
            for asked in (pair, bases)
            for name, at in (("port", place), ("range", place), ("port", rest))
        ]
        chains[chain].append(e.verdict(e.GOTO, "deny"))
    return chains


def _go(name: str, at: int, chains: str) -> bytes:
    """To the chain of the verdict that the map *name* has for the key from register *at*; *chains*: which chains."""
    return e.immediate(0, bytes(8)) + e.lookup(name, at, into=1) + e.lookup(chains, 0, verdict_map=True)


def _refer(spec: TableSpec) -> dict[str, list[bytes]]:
    """An answer given to the connection itself, a cached one, or the queue; not more of them than a pod may have."""
    v4 = e.meta(e.META_NFPROTO, 0) + e.compare(0, bytes([_V4]))
    v6 = e.meta(e.META_NFPROTO, 0) + e.compare(0, bytes([_V6]))
    ends4 = e.tracked(e.CT_SRC_IP, 4, e.ORIGINAL) + e.tracked(e.CT_SRC_IP, 5, e.REPLY)
    ends6 = e.tracked(e.CT_SRC_IP6, 4, e.ORIGINAL) + e.tracked(e.CT_SRC_IP6, 8, e.REPLY)
    rules = [
        _let_by(REFER) + e.verdict(e.GOTO, "passed"),
    ]
    for family, ends, at, name, icmp_number in (
        (v4, ends4, 6, "answers4", _ICMP), (v6, ends6, 12, "answers6", _ICMP6),
    ):  # fmt: skip
        both = ends + e.meta(e.META_L4PROTO, at)
        go = _go(name, 4, "given")
        port = e.tracked(e.CT_PROTO_SRC, at + 1, e.REPLY)
        rules += [family + e.protocol(one) + both + port + go for one in (_TCP, _UDP, _SCTP)]
        rules.append(family + e.protocol(icmp_number) + both + e.payload(e.TRANSPORT, 0, 1, at + 1) + go)
        rules.append(family + both + e.immediate(at + 1, bytes(4)) + go)
    rate = e.limit_over(spec.referrals_per_second, spec.referral_burst)
    over = counted("referral_rate", e.GOTO, "deny")
    rules += [
        v4 + e.tracked(e.CT_SRC_IP, 0, e.ORIGINAL) + e.for_each("rate4", 0, _RATE_FORGET_MS, rate) + over,
        v6 + e.tracked(e.CT_SRC_IP6, 0, e.ORIGINAL) + e.for_each("rate6", 0, _RATE_FORGET_MS, rate) + over,
        # Packets the other way, of a connection that was open: whoever reads them turns their addresses round.
        e.tracked(e.CT_DIRECTION, 0) + e.compare(0, b"\1") + e.count("referred") + spec.queue_rule(2),
        e.count("referred") + spec.queue_rule(0),
    ]
    return {"refer": rules}


def _deny(spec: TableSpec) -> dict[str, list[bytes]]:
    """Pods are told at once; the outside is not."""
    from_pod = ours(e.META_IIFNAME, spec.prefix)
    return {
        "audit": [e.log(spec.log_group, LOG_AUDITED, VERDICT_COPY_BYTES) + e.verdict(e.GOTO, "audited")],
        "deny": [
            e.count("denied") + e.log(spec.log_group, LOG_DENIED, VERDICT_COPY_BYTES),
            from_pod + e.protocol(_TCP) + e.reject_reset(),
            # Also to the outside, for connections that were open: silence would leave them hanging.
            e.state(e.STATE_ESTABLISHED) + e.protocol(_TCP) + e.reject_reset(),
            from_pod + e.reject_prohibited(),
            e.verdict(e.DROP),
        ],
    }
