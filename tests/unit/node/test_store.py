"""The store: transactions, journal, audit chain, event ring, ports, lookups."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from casemate.node import audit, database, events, journal, listing, lookup, ports
from casemate.node.database import Database, DatabaseNewer
from casemate.node.errors import ContainerNotFound, PortTaken, ReferenceAmbiguous
from casemate.node.rows import ContainerRow, PodRow, encode, insert, select
from casemate.spec.api import ContainerList, PortRequest
from casemate.spec.errors import Corrupt, DiskFull, InvalidArgument
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, PublishedPort


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = database.connect(str(tmp_path / "x.db"))
    yield connection
    connection.close()


def add(db: sqlite3.Connection, id_: str, name: str, **values: object) -> ContainerRow:
    pod = ("f" + id_)[:64]
    pod_spec = PodSpec(id=pod, name=f"p-{name}", hostname="h")
    insert(db, PodRow(pod, "default", f"p-{name}", 1.0, b"{}", encode(pod_spec), 1, None))
    spec = ContainerSpec(id=id_, pod=pod, name=name, layers=(), process=Process(args=("x",)))
    fields: dict[str, object] = {
        "id": id_, "project": "default", "name": name, "pod": pod, "created_at": 1.0,
        "request": encode({"image": "i"}), "spec": encode(spec), "image": "i", "image_digest": "d", "command": "x",
        "labels": b"{}", "restart_name": "no", "restart_maximum": 0, "auto_remove": 0, "stop_signal": 15,
        "stop_timeout": 10, "admission": b"{}", "warnings": b"[]", "desired": "created", "status": "created",
    }  # fmt: skip
    row = ContainerRow(**{**fields, **values})  # type: ignore[arg-type]
    insert(db, row)
    return row


def test_a_row_comes_back(db: sqlite3.Connection) -> None:
    row = add(db, "a" * 64, "one", exit_code=7)
    assert select(db, ContainerRow, "WHERE id=?", row.id) == [row]
    assert row.the_spec().name == "one"
    assert row.the_request().image == "i"


def test_a_whole_list_says_what_a_page_says(db: sqlite3.Connection) -> None:
    """The first goes to JSON by a short way."""
    port = PublishedPort(80, 8080, "127.0.0.1", "udp")
    for number, values in enumerate(
        [{}, {"labels": b'{"a":"\\u00fc\\""}', "exit_code": 3, "started_at": 5.000001, "finished_at": 1e9 + 0.25},
         {"command": 'say "h\\i"\n', "status": "running", "restarts": 2}]
    ):  # fmt: skip
        id_ = f"{number}" * 64
        pod = ("f" + id_)[:64]
        add(db, id_, f"c{number}", created_at=number + 1.0, **values)
        network = NetworkSpec(address="10.1.2.3", ports=(port,) if number == 1 else ())
        spec = PodSpec(id=pod, name="p", hostname="h", level="gvisor" if number == 2 else "namespace", network=network)
        db.execute("UPDATE pods SET spec=?, address=? WHERE id=?", (encode(spec), 0x0A010203 + number, pod))
    everything = listing.Filter.parse((), everything=True)
    whole, page = (
        msgspec.json.decode(
            msgspec.json.encode(listing.select_summaries(db, "default", everything, listing.Page(limit))),
            type=ContainerList,
        ).containers
        for limit in (0, 100)
    )
    assert len(whole) == 3
    for one, other in zip(whole, page, strict=True):
        times = {}
        for field in ("created_at", "started_at", "finished_at"):
            first, times[field] = getattr(one, field), getattr(other, field)
            assert first == times[field] or datetime.fromisoformat(first) == datetime.fromisoformat(times[field])
        assert msgspec.structs.replace(one, **times) == other
    assert whole[1].ports == (PortRequest(80, 8080, "127.0.0.1", "udp"),)
    assert (whole[0].level, whole[0].address) == ("gvisor", "10.1.2.5")


def test_projects_hold_the_same_name_each_for_itself(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO projects (name, created_at) VALUES ('other', 1)")
    add(db, "a" * 64, "web")
    pod = PodSpec(id="e" * 64, name="p-web", hostname="h")
    insert(db, PodRow(pod.id, "other", pod.name, 1.0, b"{}", encode(pod), 1, None))
    first = select(db, ContainerRow, "WHERE id=?", "a" * 64)[0]
    insert(db, msgspec.structs.replace(first, id="b" * 64, project="other", pod=pod.id))
    everything = listing.Filter.parse((), everything=True)
    for project, id_ in (("default", "a" * 64), ("other", "b" * 64)):
        assert lookup.container(db, "web", project).id == id_
        assert lookup.pod(db, "p-web", project).project == project
        found = listing.select_summaries(db, project, everything, listing.Page()).containers
        assert [row.id for row in found] == [id_]
    with pytest.raises(ContainerNotFound):
        lookup.container(db, "b" * 64, "default")
    with pytest.raises(sqlite3.IntegrityError):
        insert(db, msgspec.structs.replace(first, id="c" * 64))


def test_lookup(db: sqlite3.Connection) -> None:
    one, two = "ab" + "0" * 62, "ac" + "0" * 62
    add(db, one, "abc")
    add(db, two, "two")
    assert lookup.container(db, one, "default").id == one
    assert lookup.container(db, "ac", "default").id == two
    assert lookup.container(db, "abc", "default").id == one  # the name wins over the beginning of an id
    with pytest.raises(ReferenceAmbiguous):
        lookup.container(db, "a", "default")
    for text in ("x", "", "ad", "%", "a" * 5000, "two'--"):
        with pytest.raises(ContainerNotFound):
            lookup.container(db, text, "default")
    with pytest.raises(ContainerNotFound):
        lookup.container(db, one, "other")


def test_the_journal_names_what_was_interrupted(db: sqlite3.Connection) -> None:
    number = journal.begin(db, "container.remove", "c1", 5.0, volumes=True)
    journal.step(db, number, "made")
    other = journal.begin(db, "container.start", "c2", 6.0)
    journal.end(db, other)
    (entry,) = journal.pending(db)
    assert (entry.kind, entry.subject, entry.step, entry.facts) == ("container.remove", "c1", "made", {"volumes": True})
    journal.end_all(db, "c1")
    assert journal.pending(db) == []


def test_the_audit_chain_notices_changes_and_removals(db: sqlite3.Connection) -> None:
    for number in range(5):
        audit.append(db, 1.0, "0:root", "container.create", f"c{number}", grants=[])
    assert audit.verify(db) is None
    page = audit.page(db, 0, 3)
    assert page.intact
    assert [row.number for row in page.rows] == [1, 2, 3]
    assert audit.page(db, 3, 10).intact
    changed = db.execute("SELECT row FROM audit WHERE number=3").fetchone()[0].replace(b"c2", b"c9")
    db.execute("UPDATE audit SET row=? WHERE number=3", (changed,))
    assert audit.verify(db) == 3
    assert not audit.page(db, 0, 10).intact


def test_the_last_rows_of_the_audit_log_are_a_page_too(db: sqlite3.Connection) -> None:
    for number in range(5):
        audit.append(db, 1.0, "0:root", "container.create", f"c{number}")
    page = audit.page(db, audit.before_last(db, 2), 2)
    assert [row.number for row in page.rows] == [4, 5]
    assert page.intact
    assert audit.before_last(db, 5) == audit.before_last(db, 99) == 0


def test_a_removed_audit_row_is_noticed(db: sqlite3.Connection) -> None:
    for number in range(5):
        audit.append(db, 1.0, "0:root", "x", f"c{number}")
    db.execute("DELETE FROM audit WHERE number=2")
    assert audit.verify(db) == 3


def test_the_ring_of_events_is_bounded(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RING_ROWS", 100)
    db.execute("BEGIN")
    for number in range(events.TRIM_EVERY * 2):
        events.add(db, float(number), "container", "s", "start")
    db.execute("COMMIT")
    rows = db.execute("SELECT count(*) FROM events").fetchone()[0]
    assert rows == 100
    assert events.last_number(db) == events.TRIM_EVERY * 2
    found = events.page(db, 0, 1000.0, 1010.0)
    assert [row.number for row in found] == list(range(1001, 1012))


def test_ports_are_held_by_one_pod(db: sqlite3.Connection) -> None:
    add(db, "a" * 64, "one")
    add(db, "b" * 64, "two")
    one, two = "f" + "a" * 63, "f" + "b" * 63
    db.execute("UPDATE containers SET status='running'")
    nobody: ports.Listening = frozenset()
    ports.reserve(db, one, (PortRequest(80, 8080),), nobody, lambda n: 0)
    for taken in (PortRequest(80, 8080), PortRequest(80, 8080, "127.0.0.1")):
        with pytest.raises(PortTaken, match="container one"):
            ports.reserve(db, two, (taken,), nobody, lambda n: 0)
    ports.reserve(db, two, (PortRequest(80, 8080, protocol="udp"),), nobody, lambda n: 0)
    with pytest.raises(PortTaken, match="program of the host"):
        ports.reserve(db, two, (PortRequest(80, 22),), frozenset({("tcp", "0.0.0.0", 22)}), lambda n: 0)
    with pytest.raises(InvalidArgument):
        ports.reserve(db, two, (PortRequest(80, 81, "host.name"),), nobody, lambda n: 0)
    chosen = ports.reserve(db, two, (PortRequest(80), PortRequest(81)), nobody, lambda n: 5)
    assert [port.host_port for port in chosen] == [49_157, 49_158]
    for status in ("restarting", "removing", "stopping"):
        db.execute("UPDATE containers SET status=? WHERE pod=?", (status, one))
        with pytest.raises(PortTaken, match="container one"):
            ports.reserve(db, two, (PortRequest(80, 8080),), nobody, lambda n: 0)
    db.execute("UPDATE containers SET status='exited' WHERE pod=?", (one,))
    ports.reserve(db, two, (PortRequest(80, 8080),), nobody, lambda n: 0)
    with pytest.raises(PortTaken, match="container two"):
        ports.reserve(db, one, (PortRequest(80, 8080),), nobody, lambda n: 0)


def test_no_port_is_chosen_that_a_pod_at_rest_will_ask_for_again(db: sqlite3.Connection) -> None:
    add(db, "a" * 64, "one")
    add(db, "b" * 64, "two")
    ports.reserve(db, "f" + "a" * 63, (PortRequest(80),), frozenset(), lambda n: 5)
    db.execute("UPDATE containers SET status='exited'")
    chosen = ports.reserve(db, "f" + "b" * 63, (PortRequest(80),), frozenset(), lambda n: 5)
    assert [port.host_port for port in chosen] == [49_158]


def test_a_database_with_rows_in_every_kind_of_table_is_sound(tmp_path: Path) -> None:
    """SQLite 3.40's quick_check took published ports for damage, and casemated did not start again."""
    path = str(tmp_path / "x.db")
    db = database.connect(path)
    row = add(db, "a" * 64, "web")
    ports.reserve(db, row.pod, (PortRequest(80, 8080),), frozenset(), lambda _: 0)
    db.execute("INSERT INTO container_volumes VALUES (?, 'default', 'notes')", (row.id,))
    db.close()
    database.connect(path).close()


def test_a_write_is_whole_or_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Database(str(tmp_path / "y.db"))
        await store.open()

        def fail(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO facts VALUES ('a', 'b')")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await store.write(fail)
        assert await store.read(lambda db: db.execute("SELECT count(*) FROM facts").fetchone()[0]) == 0
        await store.write(lambda db: db.execute("INSERT INTO facts VALUES ('a', 'b')"))
        await store.close()
        again = Database(str(tmp_path / "y.db"))
        await again.open()
        assert await again.read(lambda db: db.execute("SELECT value FROM facts").fetchone()[0]) == "b"
        await again.close()

    asyncio.run(scenario())


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "z.db")
    connection = database.connect(path)
    connection.execute("PRAGMA user_version=999")
    connection.close()
    with pytest.raises(DatabaseNewer):
        database.connect(path)


def test_a_corrupt_or_full_database_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "bad.db"
        path.write_bytes(b"this is not a database, but long enough to look at" * 50)
        with pytest.raises(Corrupt):
            await Database(str(path)).open()
        store = Database(str(tmp_path / "full.db"))
        await store.open()
        await store.read(lambda db: db.execute("PRAGMA max_page_count=1").fetchone())
        with pytest.raises(DiskFull):
            await store.write(lambda db: db.execute("INSERT INTO facts VALUES ('a', ?)", ("x" * 1_000_000,)))
        await store.close()

    asyncio.run(scenario())
