"""The resolver without sockets: names of ours, guard, cache, what waits for the firewall; messages whole and broken."""

from __future__ import annotations

import asyncio
import ipaddress
import struct

import msgspec
import pytest
from tests.fuzz.packets import query

from casemate.node.dns import message
from casemate.node.dns.cache import Cache
from casemate.node.dns.forward import Forwarder, NoAnswer, parse_server, random_case
from casemate.node.dns.guard import Guard
from casemate.node.dns.message import MessageBroken
from casemate.node.dns.resolver import MAX_OF_ONE, Resolver
from casemate.node.dns.wire import Answered, Laid, Refused
from casemate.node.dns.zone import Zone

POOL = "10.209.0.0/16"
WEB, DB, OTHER = "10.209.0.2", "10.209.0.3", "10.209.0.4"


class Upstream(Forwarder):
    """A resolver outside: *held* by name, packed addresses; *asked* is what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.ttl_s = 60
        self.silent = False
        self.gate: asyncio.Event | None = None

    async def ask(self, question: bytes, *, wants_dnssec: bool) -> message.Answer:
        name, _ = message.read_name(bytes(12) + question, 12)
        self.asked.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if self.silent:
            raise NoAnswer
        asked = message.read_query(message.write_query(9, question, wants_dnssec=wants_dnssec))
        if name not in self.held:
            return message.read_answer(message.respond(asked, message.NXDOMAIN))
        records = [
            (message.A if packed.version == 4 else message.AAAA, self.ttl_s, packed.packed)
            for packed in map(ipaddress.ip_address, self.held[name])
        ]
        return message.read_answer(message.respond(asked, 0, records))


class Site:
    def __init__(self) -> None:
        self.told: list[msgspec.Struct] = []
        self.clock = 1000.0
        self.upstream = Upstream()
        zone = Zone(POOL)
        zone.put(WEB, "shop", ("web",))
        zone.put(DB, "shop", ("db", "DB-2"))
        zone.put(OTHER, "lab", ("web",))
        guard = Guard(POOL, ("*.lan.example.org",), lambda address: str(address) == "10.0.0.1")
        self.resolver = Resolver(zone, self.upstream, guard, self._tell, lambda: self.clock)

    def _tell(self, value: msgspec.Struct) -> bool:
        self.told.append(value)
        return True

    async def ask(self, name: str, kind: int = message.A, viewer: str = WEB) -> message.Answer:
        return message.read_answer(await self.resolver.respond(query(name, kind, edns=True), viewer))

    async def addresses(self, name: str, viewer: str = WEB) -> list[str]:
        return [str(ipaddress.ip_address(one)) for one, _ in (await self.ask(name, viewer=viewer)).addresses()]


def test_who_is_in_quarantine_asks_nobody_outside() -> None:
    """A name is a message to whoever serves its domain; what was allowed it may ask, and its neighbours' names."""

    async def body() -> None:
        site = Site()
        site.upstream.held = {"secret.example.org": ["198.51.100.7"], "api.example.org": ["198.51.100.8"]}
        assert await site.addresses("secret.example.org") == ["198.51.100.7"]
        site.resolver.held[WEB] = ("api.example.org", "*.cdn.example.org")
        for name in ("secret.example.org", "example.org", "xapi.example.org", "cdn.example.org"):
            for kind in (message.A, message.TXT, message.ANY):
                assert (await site.ask(name, kind)).code == message.REFUSED, "a kept answer is none either"
        assert await site.addresses("api.example.org") == ["198.51.100.8"]
        assert await site.addresses("db") == [DB]
        assert await site.addresses("secret.example.org", DB) == ["198.51.100.7"], "nobody else notices"
        assert site.upstream.asked == ["secret.example.org", "api.example.org"]
        del site.resolver.held[WEB]
        assert await site.addresses("secret.example.org") == ["198.51.100.7"]

    asyncio.run(body())


def test_pods_by_name_and_project() -> None:
    async def body() -> None:
        site = Site()
        assert await site.addresses("db") == [DB]
        assert await site.addresses("DB-2.shop.casemate") == [DB]
        assert await site.addresses("web") == [WEB]
        assert await site.addresses("web", OTHER) == [OTHER]
        assert await site.addresses("db.shop.casemate", OTHER) == [DB]
        assert (await site.ask("db", viewer=OTHER)).code == message.NXDOMAIN
        assert (await site.ask("nothing.shop.casemate")).code == message.NXDOMAIN
        six = await site.ask("db", message.AAAA)
        assert (six.code, six.addresses()) == (message.NOERROR, [])
        back = await site.ask("3.0.209.10.in-addr.arpa", message.PTR)
        names = [message.read_name(back.data, record.data_at)[0] for record in back.records if record.section == 1]
        assert names == ["db.shop.casemate", "db-2.shop.casemate"]
        assert site.upstream.asked == [], "no name of ours is told to strangers"

    asyncio.run(body())


def test_a_stranger_and_odd_questions_are_refused() -> None:
    async def body() -> None:
        site = Site()
        assert (await site.ask("db", viewer="10.209.9.9")).code == message.REFUSED
        assert (await site.ask("example.org", message.AXFR)).code == message.REFUSED
        assert (await site.ask("example.org", message.ANY)).code == message.NOTIMP
        assert await site.addresses("localhost") == ["127.0.0.1"]
        garbage = await site.resolver.respond(b"\0\7\1\0\0\2" + bytes(6), WEB)
        assert garbage[3] & 15 == message.FORMERR
        assert await site.resolver.respond(b"x", WEB) == b""
        assert await site.resolver.respond(message.respond(message.read_query(query("x")), 0), WEB) == b"", "a loop"
        assert site.upstream.asked == []

    asyncio.run(body())


def test_the_rest_is_forwarded_once_and_kept_for_its_lifetime() -> None:
    async def body() -> None:
        site = Site()
        site.upstream.held["www.example.org"] = ["192.0.2.7", "2001:db8::7"]
        assert await site.addresses("www.example.org") == ["192.0.2.7", "2001:db8::7"]
        site.clock += 10
        again = await site.ask("WWW.example.org")
        assert [ttl_s for _, ttl_s in again.addresses()] == [50, 50]
        assert again.question.startswith(b"\3WWW"), "answered in the asker's own spelling"
        assert site.upstream.asked == ["www.example.org"]
        site.clock += 51
        await site.ask("www.example.org")
        assert len(site.upstream.asked) == 2
        told = [one for one in site.told if isinstance(one, Answered)]
        assert told[0] == Answered(WEB, "www.example.org", (("192.0.2.7", 60), ("2001:db8::7", 60)))

    asyncio.run(body())


@pytest.mark.parametrize(
    "address",
    ["10.209.0.3", "127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "::ffff:10.209.0.3", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)  # fmt: skip
def test_a_name_of_strangers_may_not_lead_inside(address: str) -> None:
    async def body() -> None:
        site = Site()
        site.upstream.held["evil.example.org"] = ["192.0.2.7", address]
        answer = await site.ask("evil.example.org")
        assert (answer.code, answer.addresses()) == (message.REFUSED, [])
        assert [one for one in site.told if isinstance(one, Refused)]
        assert not [one for one in site.told if isinstance(one, Answered)]
        site.upstream.held["nas.lan.example.org"] = [address]
        assert (await site.ask("nas.lan.example.org")).code == message.NOERROR

    asyncio.run(body())


def test_hints_of_https_records_are_guarded_too() -> None:
    asked = message.read_query(query("x.org", message.HTTPS))
    data = b"\0\1\0" + struct.pack("!HH", 4, 8) + bytes((192, 0, 2, 1, 127, 0, 0, 1))
    answer = message.read_answer(message.respond(asked, 0, [(message.HTTPS, 9, data)]))
    assert answer.hints() == [bytes((192, 0, 2, 1)), bytes((127, 0, 0, 1))]
    assert Guard(POOL, (), lambda _: False).refused("x.org", answer.hints()) is not None


def test_a_watched_answer_waits_until_it_is_laid() -> None:
    async def body() -> None:
        site = Site()
        site.resolver.watched = ("*.example.org",)
        site.upstream.held["api.example.org"] = ["192.0.2.7"]
        site.upstream.ttl_s = 1
        asking = asyncio.ensure_future(site.ask("api.example.org"))
        for _ in range(20):
            await asyncio.sleep(0)
        (answered,) = site.told
        assert isinstance(answered, Answered)
        assert answered.addresses == (("192.0.2.7", 30),), "long enough to be used"
        assert not asking.done()
        site.resolver.laid(Laid(answered.number))
        assert (await asking).addresses() == [(bytes((192, 0, 2, 7)), 1)]
        site.resolver.laid(Laid(answered.number))  # late, and passed over

    asyncio.run(body())


def test_what_cannot_be_laid_is_not_told() -> None:
    async def body() -> None:
        site = Site()
        site.resolver.watched = ("api.example.org",)
        site.upstream.held["api.example.org"] = ["192.0.2.7"]
        asking = asyncio.ensure_future(site.ask("api.example.org"))
        for _ in range(20):
            await asyncio.sleep(0)
        site.resolver.laid(Laid(1, failed=True))
        assert (await asking).code == message.SERVFAIL

    asyncio.run(body())


def test_a_flood_of_one_pod_leaves_the_others_their_answers() -> None:
    async def body() -> None:
        site = Site()
        site.upstream.gate = asyncio.Event()
        site.upstream.held["www.example.org"] = ["192.0.2.7"]
        async with asyncio.TaskGroup() as group:
            flood = [group.create_task(site.resolver.respond(query(f"{n}.org"), WEB)) for n in range(MAX_OF_ONE + 50)]
            await asyncio.sleep(0)
            assert await site.addresses("db") == [DB], "names of ours need no waiting, also for who floods"
            other = group.create_task(site.ask("www.example.org", viewer=OTHER))
            await asyncio.sleep(0)
            site.upstream.gate.set()
        assert sum(task.result() == b"" for task in flood) == 50
        assert other.result().addresses()
        assert site.resolver.counters().dropped == 50

    asyncio.run(body())


def test_the_same_question_at_a_time_is_asked_once() -> None:
    async def body() -> None:
        site = Site()
        site.upstream.gate = asyncio.Event()
        site.upstream.held["www.example.org"] = ["192.0.2.7"]
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(site.ask("www.example.org", viewer=viewer)) for viewer in (WEB, DB, OTHER)]
            await asyncio.sleep(0)
            site.upstream.gate.set()
        assert all(task.result().addresses() for task in both)
        assert len(site.upstream.asked) == 1

    asyncio.run(body())


def test_no_answer_is_servfail_for_everybody_who_waits() -> None:
    async def body() -> None:
        site = Site()
        site.upstream.silent = True
        site.upstream.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(site.ask("www.example.org", viewer=viewer)) for viewer in (WEB, DB)]
            await asyncio.sleep(0)
            site.upstream.gate.set()
        assert [task.result().code for task in both] == [message.SERVFAIL] * 2

    asyncio.run(body())


def test_a_long_answer_is_cut_for_a_datagram_and_whole_for_a_stream() -> None:
    async def body() -> None:
        site = Site()
        site.upstream.held["big.example.org"] = [f"192.0.2.{n}" for n in range(1, 200)]
        plain = await site.resolver.respond(query("big.example.org"), WEB)
        assert len(plain) <= message.PLAIN_BYTES
        assert message.read_answer(plain).is_cut
        whole = await site.resolver.respond(query("big.example.org"), WEB, stream=True)
        assert len(message.read_answer(whole).addresses()) == 199

    asyncio.run(body())


@pytest.mark.parametrize(
    "data",
    [
        bytes(11), query("x.org")[:-1], query("x.org")[:12] + b"\xc0\x0c\0\1\0\1",
        query("x.org")[:12] + b"\xc0\xff\0\1\0\1",
        query("x.org")[:12] + b"\x40a\0\0\1\0\1", query("x.org")[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
        query("x.org")[:4] + b"\0\2" + query("x.org")[6:], query("x.org")[:6] + b"\0\1" + query("x.org")[8:],
    ],
)  # fmt: skip
def test_broken_questions(data: bytes) -> None:
    with pytest.raises(MessageBroken) as caught:
        message.read_query(data)
    assert caught.value.code == "dns.message_broken"


def test_an_answer_whose_counts_lie_is_broken() -> None:
    asked = message.read_query(query("x.org"))
    whole = message.respond(asked, 0, [(message.A, 1, bytes(4))])
    for counts in (b"\xff\xff\0\0\0\0", b"\0\2\0\0\0\0"):
        with pytest.raises(MessageBroken):
            message.read_answer(whole[:6] + counts + whole[12:])


def test_the_cache_is_bounded_and_believes_no_long_lifetimes() -> None:
    cache = Cache()
    asked = message.read_query(query("x.org"))
    forever = message.read_answer(message.respond(asked, 0, [(message.A, 2**31 - 1, bytes(4))]))
    cache.put(("x.org", 1, False), forever, 0.0)
    assert cache.get(("x.org", 1, False), 86_399.0)
    assert cache.get(("x.org", 1, False), 86_401.0) is None
    for number in range(12_000):
        cache.put((f"{number}.org", 1, False), forever, 0.0)
    assert len(cache) == 10_000
    assert cache.get(("0.org", 1, False), 1.0) is None
    cache.put(("zero.org", 1, False), message.read_answer(message.respond(asked, 0, [(message.A, 0, bytes(4))])), 0.0)
    assert cache.get(("zero.org", 1, False), 0.0) is None


def test_servers_and_spelling() -> None:
    assert parse_server("192.0.2.53#5353") is not None
    assert [parse_server(text) for text in ("x", "192.0.2.53#0", "192.0.2.53#x", "::g")] == [None] * 4
    question = message.write_name("abcdefghijklmnopqrstuvwxyz.example.org") + b"\0\1\0\1"
    spelled = {random_case(question) for _ in range(20)}
    assert len(spelled) > 1
    assert {one.lower() for one in spelled} == {question}
