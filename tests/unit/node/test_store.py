"""The store: transactions, journal, audit chain, event ring, ports, lookups."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.node import audit, database, events, journal, lookup, ports
from casemate.node.database import Database, DatabaseNewer
from casemate.node.errors import ContainerNotFound, PortTaken, ReferenceAmbiguous
from casemate.node.rows import ContainerRow, PodRow, encode, insert, select
from casemate.spec.api import PortRequest
from casemate.spec.errors import Corrupt, DiskFull, InvalidArgument
from casemate.spec.workload import ContainerSpec, PodSpec, Process


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
    ports.release(db, one)
    ports.reserve(db, two, (PortRequest(80, 8080),), nobody, lambda n: 0)


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
