"""A store that was damaged: found, named, and never the end of what runs."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.daemons import rootfs_tar
from tests.integration.system.site import COUNTING, IMAGE, Canary, Site, settle

pytestmark = pytest.mark.root
SETTINGS: dict[str, str] = {}


def flip(path: Path, place: float = 0.5) -> bytes:
    """Change one byte; the content as it was."""
    kept = path.read_bytes()
    at = int(len(kept) * place)
    path.chmod(0o640)
    path.write_bytes(kept[:at] + bytes([kept[at] ^ 0xFF]) + kept[at + 1 :])
    return kept


def findings(site: Site) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(site("system", "doctor", "--json").stdout)["findings"]
    return rows


def test_a_damaged_blob_is_named_and_what_runs_goes_on(site: Site) -> None:
    blob = max((site.folder / "state/blobs/sha256").iterdir(), key=lambda one: one.stat().st_size)
    kept = flip(blob)
    try:
        assert any(row["check"] == "store" and row["severity"] == "error" and blob.name in str(row["detail"])
                   for row in findings(site))  # fmt: skip
        assert site("system", "doctor").returncode == 1
        assert site("run", "--rm", IMAGE, "echo", "still").stdout == b"still\n"
        done = site("save", "-o", "/dev/null", IMAGE)
        assert done.returncode == 125, "what is damaged is not handed on"
        assert b"remedy:" in done.stderr
    finally:
        if not blob.exists() or blob.read_bytes() != kept:
            blob.write_bytes(kept)


def test_a_damaged_layer_record(site: Site) -> None:
    record = next((site.folder / "state/layers").iterdir())
    kept = record.read_bytes()
    for damage in (b"", b"{", kept[: len(kept) // 2], b'{"x": 1}', b"\xff" * 100):
        record.write_bytes(damage)
        done = site("--json", "run", "--rm", IMAGE, "true")
        assert done.returncode in (0, 125), done
        assert b"Traceback" not in done.stderr
        assert site("ps").returncode == 0
        if done.returncode:
            assert b'"remedy":' in done.stderr, done.stderr
        record.write_bytes(kept)
    assert site("run", "--rm", IMAGE, "true").returncode == 0


def test_a_damaged_squashfs(site: Site, tmp_path: Path) -> None:
    """hostd parses no image; the kernel answers EIO. One container fails, with a message; the next image works."""
    archive = tmp_path / "other.tar"
    archive.write_bytes(rootfs_tar().replace(b"/home/app:/bin/sh", b"/home/app:/bin/ls"))
    before = set((site.folder / "host-state/layers").rglob("*"))
    assert site("image", "import", "--format", "rootfs", str(archive), "other:1").returncode == 0
    [layer] = [path for path in set((site.folder / "host-state/layers").rglob("*")) - before if path.is_file()]
    kept = layer.read_bytes()
    for damaged in (b"\0" * len(kept), kept[:4096], kept[:96] + b"\xff" * (len(kept) - 96)):
        layer.chmod(0o600)
        layer.write_bytes(damaged)
        subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=False)
        done = site("--json", "run", "--rm", "other:1", "true")
        assert done.returncode in (125, 126, 127), done
        assert b'"remedy":' in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr
        assert site("run", "--rm", IMAGE, "true").returncode == 0
        assert site("ps", "-aq").stdout.split() == [site.inspect(Canary.NAME)["Id"][:12].encode()]  # type: ignore[index]
    assert site("rmi", "-f", "other:1").returncode == 0
    assert site("system", "prune", "--left-overs").returncode == 0


def test_a_cut_off_database_is_not_started_on(site: Site) -> None:
    """casemated says so and ends; nothing is overwritten, containers go on, and with the file put back all is there."""
    id_ = site("run", "-d", "--name", "goes-on", IMAGE, "sh", "-c", COUNTING).stdout.decode().strip()
    pid = site.daemons.client.inspect(id_).pid
    site.daemons.kill("casemated")
    state = site.folder / "state"
    fold = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone())"
    )
    subprocess.run(["/usr/bin/python3", "-c", fold, str(state / "casemate.db")], check=True)
    parts = {path: path.read_bytes() for path in state.glob("casemate.db*")}
    database = state / "casemate.db"
    assert len(parts[database]) > 100_000
    try:
        for damaged in (parts[database][: len(parts[database]) // 2], b"no database at all\n" * 500):
            for path in parts:
                path.unlink(missing_ok=True)
            database.write_bytes(damaged)
            subprocess.run(["chown", "casemate", str(database)], check=True)
            process = site.daemons._spawn("casemated")
            ended = settle(lambda process=process: process.poll() is not None, 15)
            if not ended:
                process.kill()
                process.wait()
            assert ended, "it serves from a database that is cut off"
            assert process.returncode not in (0, None)
            said = site.daemons.journal("casemated")[-3000:]
            assert "remedy:" in said, said
            assert "Traceback" not in said[-1500:], said
            assert database.read_bytes()[: len(damaged) // 2] == damaged[: len(damaged) // 2], "nothing is overwritten"
            assert Path(f"/proc/{pid}").exists()
    finally:
        for path in state.glob("casemate.db*"):
            path.unlink()
        for path, data in parts.items():
            path.write_bytes(data)
            subprocess.run(["chown", "casemate", str(path)], check=True)
    site.daemons.start()
    assert site.daemons.client.inspect("goes-on").pid == pid
    assert site("rm", "-f", "goes-on").returncode == 0


def test_a_record_of_hostd_that_cannot_be_read(site: Site) -> None:
    """hostd starts, never kills what it cannot place, names it, and other containers are as they were."""
    id_ = site("run", "-d", "--name", "unread", IMAGE, "sh", "-c", COUNTING).stdout.decode().strip()
    pid = site.daemons.client.inspect(id_).pid
    site.daemons.kill("casemate-hostd")
    [record] = site.folder.glob(f"host-state/pods/*/{id_}/container.json")
    record.write_bytes(record.read_bytes()[:100])
    site.daemons.start()
    time.sleep(0.3)
    assert Path(f"/proc/{pid}").exists()
    assert any("without a readable record" in str(row["check"]) for row in findings(site))
    assert site("run", "--rm", IMAGE, "true").returncode == 0
    assert site("system", "prune", "--left-overs").returncode == 0
    assert settle(lambda: not Path(f"/proc/{pid}").exists())
    site("system", "prune", "--left-overs")
    assert site("rm", "-f", "unread").returncode == 0


def test_an_audit_log_that_was_changed_is_noticed(site: Site) -> None:
    site.daemons.kill("casemated")
    change = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1])
for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
    store.execute(f"DROP TRIGGER {name}")
done = store.execute("UPDATE audit SET row=CAST(replace(CAST(row AS TEXT), 'i', 'I') AS BLOB) WHERE number=2")
print(done.rowcount)
store.commit()
"""
    path = str(site.folder / "state/casemate.db")
    kept = {one: one.read_bytes() for one in (site.folder / "state").glob("casemate.db*")}
    done = subprocess.run(["/usr/bin/python3", "-c", change, path], capture_output=True, check=True)
    assert done.stdout == b"1\n"
    site.daemons.start()
    try:
        verified = site("audit", "verify")
        assert verified.returncode == 1, verified
        assert any(row["check"] == "audit" and row["severity"] == "error" for row in findings(site))
    finally:
        site.daemons.kill("casemated")
        for one in (site.folder / "state").glob("casemate.db*"):
            one.unlink()
        for one, data in kept.items():
            one.write_bytes(data)
            subprocess.run(["chown", "casemate", str(one)], check=True)
        site.daemons.start()
