"""The store: what is visible is whole; leases and locks hold; garbage is what nobody needs. And packed streams."""

import bz2
import gzip
import lzma
import os
import threading

import pytest
import zstandard

from casemate.image.decompress import STEP_BYTES, decompressed
from casemate.image.errors import LayerCutOff, LayerInvalid, WorkerFailed, from_os_error
from casemate.image.garbage import collect_garbage, plan_garbage, sweep_dead, usage
from casemate.image.jobs import Limits, Progress, PullJob, decode_job, decode_message, encode
from casemate.image.leases import Lease, leased_digests, release, start_time
from casemate.image.records import LayerRecord
from casemate.image.store import Store
from casemate.image.workspace import Stopped, Workspace
from casemate.spec.errors import Corrupt, DiskFull, InvalidArgument, NotFound

HEX = "0" * 63 + "1"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.create()
    return made


def test_blob_comes_back_and_damage_is_seen(store):
    digest = store.put_blob(b"hello")
    assert store.has_blob(digest, 5)
    assert not store.has_blob(digest, 6)
    assert store.read_blob(digest, 100) == b"hello"
    store.blob_path(digest).write_bytes(b"hellO")
    with pytest.raises(Corrupt):
        store.read_blob(digest, 100)
    with pytest.raises(NotFound):
        store.open_blob("sha256:" + "f" * 64)


@pytest.mark.parametrize("name", ["sha256:../../etc/passwd", "sha256:" + "g" * 64, "x", "sha512:" + "a" * 64])
def test_a_digest_cannot_lead_out(store, name):
    with pytest.raises(InvalidArgument):
        store.blob_path(name)


def test_layer_record_survives_and_damage_is_seen(store):
    record = LayerRecord(f"sha256:{HEX}", f"sha256:{HEX}", 1, 2, 3, passwd=b"\xff\0", passwd_hidden=True)
    store.put_layer_record(record)
    assert store.layer_record(record.diff_id) == record
    store.layer_path(record.diff_id).write_text("{}")
    with pytest.raises(Corrupt):
        store.layer_record(record.diff_id)


def test_lock_excludes_and_goes_with_its_holder(store):
    held = store.try_lock("x")
    assert held is not None
    assert store.try_lock("x") is None
    os.close(held)
    with store.lock("x"):
        assert store.try_lock("x") is None


def test_lock_whose_file_was_removed_is_taken_anew(store):
    order = []
    with store.lock("x"):
        waiter = threading.Thread(target=lambda: [order.append("in") for _ in [store.lock("x").__enter__()]])
        (store.root / "locks/x").unlink()
        waiter.start()
        waiter.join(5)
        assert order == ["in"], "a lock file that is gone locks nobody out"


def test_lease_of_a_dead_holder_does_not_count(store):
    lease = Lease(store, os.getpid())
    lease.add([f"sha256:{HEX}"])
    dead = Lease(store, 4_000_000)
    dead.add([f"sha256:{'2' * 64}"])
    live, gone = leased_digests(store)
    assert live == {f"sha256:{HEX}"}
    assert gone == (dead.name,)
    assert start_time(os.getpid())
    release(store, "../../etc/passwd")
    lease.drop()
    assert leased_digests(store)[0] == frozenset()


def test_garbage_is_what_nobody_needs(store):
    kept, leased, loose = (store.put_blob(data) for data in (b"kept", b"leased", b"loose"))
    Lease(store, os.getpid()).add([leased])
    record = LayerRecord(f"sha256:{HEX}", "sha256:" + "3" * 64, 1, 2, 3)
    store.put_layer_record(record)
    store.staged_path(record.squashfs_digest).write_bytes(b"s")
    (store.root / "ingest" / ("4" * 64)).write_bytes(b"partial")
    (store.root / f"staging/tmp-{os.getpid()}-aa.sqfs").write_bytes(b"under way")
    (store.root / "staging/tmp-4000000-aa.sqfs").write_bytes(b"its writer is dead")
    plan = plan_garbage(store, [kept, record.diff_id])
    assert {removal.path.name for removal in plan} == {loose[7:], "tmp-4000000-aa.sqfs"}
    assert all(removal.reason in removal.describe() for removal in plan)
    collect_garbage(store, [kept])
    assert store.has_blob(kept)
    assert store.has_blob(leased)
    assert store.layer_record(record.diff_id) is None
    assert not store.staged_path(record.squashfs_digest).exists()
    assert (store.root / f"staging/tmp-{os.getpid()}-aa.sqfs").exists()
    assert {removal.path.name for removal in plan_garbage(store, [kept], now_s=4e9)} >= {"4" * 64}
    assert usage(store).blobs > 0


def test_what_a_killed_writer_left_is_swept(store):
    """Names with our own pid are swept too: at the daemon's start they are of another that had the number before."""
    own = Lease(store, os.getpid())
    own.add(["sha256:" + "5" * 64])
    gone = [f"uploads/tmp-{os.getpid()}-aa", "uploads/tmp-4000000-bb", "staging/tmp-4000000-cc.sqfs",
            f"leases/4000000-1-{'a' * 16}"]  # fmt: skip
    stay = [f"staging/tmp-{os.getppid()}-dd.sqfs", "ingest/" + "4" * 64, f"leases/{own.name}"]
    for name in (*gone, *stay):
        (store.root / name).touch()
    assert set(sweep_dead(store)) == {store.root / name for name in gone}
    assert not any((store.root / name).exists() for name in gone)
    assert all((store.root / name).exists() for name in stay)
    assert sweep_dead(store) == []
    (store.root / "uploads/tmp-4000000-ee").touch()
    assert [removal.path.name for removal in plan_garbage(store, [])] == ["tmp-4000000-ee"]


def test_full_disk_has_its_code():
    assert isinstance(from_os_error(OSError(28, "No space left on device"), "x"), DiskFull)


def pieces(data, size=1000):
    return iter([data[start : start + size] for start in range(0, len(data), size)])


PLAIN = os.urandom(50_000) + bytes(3 << 20)
PACKERS = {
    "gzip": gzip.compress,
    "two members": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "padded": lambda data: gzip.compress(data) + bytes(700),
    "zstd": zstandard.compress,
    "two frames": lambda data: (
        zstandard.compress(data[:9]) + b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstandard.compress(data[9:])
    ),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "plain": lambda data: data,
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_packed_streams(name, size):
    plain = PLAIN if size > 1 else PLAIN[:2000]
    out = list(decompressed(pieces(PACKERS[name](plain), size)))
    assert b"".join(out) == plain
    assert max(map(len, out)) <= STEP_BYTES


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "two members"])
def test_cut_off_stream(name):
    with pytest.raises(LayerCutOff):
        list(decompressed(pieces(PACKERS[name](PLAIN)[:-20])))


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz"])
def test_damaged_stream(name):
    plain = os.urandom(5000)
    data = bytearray(PACKERS[name](plain))
    data[200:300] = bytes(100)
    try:
        out = b"".join(decompressed(pieces(bytes(data))))
    except (LayerInvalid, LayerCutOff):
        return
    assert out != plain, "zstd without a check sum: then the digest sees it"


def test_jobs_and_messages():
    job = PullJob(state="/s", reference="a")
    assert decode_job(encode(job)) == job
    assert decode_message(encode(Progress("a", "done"))) == Progress("a", "done")
    for bad in (b"", b"{}", b'{"type":"other"}', b"x" * 100, b'{"type":"pull","state":1,"reference":"x"}'):
        with pytest.raises(WorkerFailed):
            decode_job(bad)
        with pytest.raises(WorkerFailed):
            decode_message(bad)


def test_a_stopped_job_says_so(store):
    work = Workspace(store, Lease(store, os.getpid()), Limits(), lambda _report: None)
    held = store.try_lock("x")
    assert held is not None
    work.stop.set()
    with pytest.raises(Stopped), work.hold("x", "a layer"):
        pass
    with pytest.raises(Stopped):
        work.check()
    os.close(held)
