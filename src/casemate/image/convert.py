"""A layer's bytes become a squashfs file in ``staging/``: decompress, hash, rewrite, ``tar2sqfs``, as one stream.

Worker only: it starts a program and holds threads, which casemated must not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess  # noqa: TID251 - the worker is no daemon: it streams into the program from a thread of its own
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from casemate.image.decompress import decompressed
from casemate.image.errors import DigestMismatch, LayerInvalid, LayerTooLarge, from_os_error
from casemate.image.jobs import Limits
from casemate.image.leases import Lease
from casemate.image.observe import LayerObserver, LayerWatch
from casemate.image.records import LayerRecord
from casemate.image.rewrite import Rewriter, Summary
from casemate.image.store import Store, sync_folder
from casemate.spec.errors import DiskFull, HostLacks, ProgramFailed

PIPE_BYTES = 1 << 20
#: Small pieces are gathered into one writev(2); IOV_MAX is 1024.
GATHER_PIECES = 512
READ_BYTES = 1 << 20
MAX_WORDS_BYTES = 4096
#: What tar2sqfs writes at a time is smaller.
FULL_BYTES = 4 << 20
#: Below this much output the ratio says nothing (a tar of one empty file is 10 KiB of zeros in 100 bytes).
RATIO_FLOOR_BYTES = 64 << 20
#: tar2sqfs writes what lz4 makes of a block, never more than the block; tables and inodes come on top.
PROGRAM = "tar2sqfs"
CHILD_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "0"}

Chunks = Iterator[bytes]


class Squasher:
    """One ``tar2sqfs``; *write* takes pieces of tar, *close* ends it and *kill* is safe at any time."""

    def __init__(self, target: Path, id_shift: int = 0) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._size = 0
        self._held = os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._words = os.memfd_create("tar2sqfs", os.MFD_CLOEXEC)
        command = [PROGRAM, "--quiet", "--force", "--no-skip", "--compressor", "lz4", "--num-jobs", "2"]
        if id_shift:
            # Folders without an entry of their own.
            command += ["--defaults", f"uid={id_shift},gid={id_shift}"]
        command.append(str(target))
        try:
            self._program = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._words, env=CHILD_ENVIRONMENT
            )
        except FileNotFoundError as error:
            os.close(self._words)
            os.close(self._held)
            raise HostLacks(
                f"the program {PROGRAM} is not installed", remedy="apt install squashfs-tools-ng"
            ) from error
        assert self._program.stdin is not None
        self._pipe = self._program.stdin.fileno()
        with contextlib.suppress(OSError):  # a user's sum of pipe sizes is bounded; a small pipe is only slower
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def write(self, piece: bytes | memoryview) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= PIPE_BYTES // 2 or len(self._pieces) >= GATHER_PIECES:
            self._flush()

    def close(self) -> None:
        """Hand over the rest, wait for the end; raises when the program failed."""
        self._flush()
        with contextlib.suppress(BrokenPipeError):
            assert self._program.stdin is not None
            self._program.stdin.close()
        if self._program.wait() != 0:
            raise self._failure()
        self.kill()

    def kill(self) -> None:
        """End the program, if it runs, and free what it held."""
        if self._program.poll() is None:
            self._program.kill()
        self._program.wait()
        with contextlib.suppress(BrokenPipeError):
            assert self._program.stdin is not None
            self._program.stdin.close()
        if self._words >= 0:
            os.close(self._words)
            os.close(self._held)
            self._words = -1

    def _flush(self) -> None:
        pieces, self._pieces, self._size = self._pieces, [], 0
        try:
            while pieces:
                sent = os.writev(self._pipe, pieces)
                for number, piece in enumerate(pieces):
                    if sent < len(piece):
                        pieces[number] = memoryview(piece)[sent:]
                        del pieces[:number]
                        break
                    sent -= len(piece)
                else:
                    pieces = []
        except BrokenPipeError:
            self._program.wait()
            raise self._failure() from None

    def _failure(self) -> Exception:
        words = os.pread(self._words, MAX_WORDS_BYTES, 0).decode(errors="replace").strip()
        code = self._program.returncode
        # tar2sqfs 1.2 says "I/O error" of a full disk too, and removes its file; we hold it, so the disk still is full.
        status = os.fstatvfs(self._held)
        full = "I/O error" in words and status.f_bavail * status.f_frsize < FULL_BYTES
        if (
            full
            or any(said in words for said in ("No space left", "Disk quota", "too large"))
            or code == -signal.SIGXFSZ
        ):
            return DiskFull(f"{PROGRAM}: {words or 'the file grew beyond its bound'}")
        return ProgramFailed(f"{PROGRAM} ended with {code}: {words[:1000]}")


class HashedStream:
    """Uncompressed chunks, counted, bounded and hashed on their way; *diff_id* is right at the end."""

    def __init__(self, compressed: Chunks, limits: Limits) -> None:
        self.packed_bytes = 0
        self.unpacked_bytes = 0
        self._hash = hashlib.sha256()
        self._limits = limits
        self._compressed = compressed

    def __iter__(self) -> Iterator[bytes]:
        limits = self._limits
        for chunk in decompressed(self._counted()):
            self.unpacked_bytes += len(chunk)
            if self.unpacked_bytes > limits.max_layer_bytes:
                raise LayerTooLarge(
                    f"the layer unpacks to more than {limits.max_layer_bytes} bytes (image.max_layer_bytes)"
                )
            if self.unpacked_bytes > RATIO_FLOOR_BYTES and self.unpacked_bytes > limits.max_ratio * self.packed_bytes:
                raise LayerTooLarge(
                    f"the layer unpacks to more than {limits.max_ratio} times its size (image.max_ratio)"
                )
            self._hash.update(chunk)
            yield chunk

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def _counted(self) -> Iterator[bytes]:
        for chunk in self._compressed:
            self.packed_bytes += len(chunk)
            yield chunk


def convert_layer(
    store: Store,
    wanted_diff_id: str | None,
    limits: Limits,
    open_source: Callable[[int], Chunks],
    *,
    lease: Lease | None = None,
    watch: LayerWatch | None = None,
) -> LayerRecord:
    """Convert one layer; *open_source(attempt)* gives its compressed bytes (anew, should a second run be needed).

    The squashfs file is synced and named in ``staging/``, no descriptor on it stays open, and the record is stored.
    With *wanted_diff_id* None (an import) the diff_id is what comes out. *watch* sees the layer pass. Raises
    :class:`DigestMismatch` and the :class:`LayerInvalid` family.
    """
    temporary = store.temporary("staging", ".sqfs")
    try:
        summary, stream, observer = _read(temporary, limits, open_source, watch)
        if wanted_diff_id is not None and stream.diff_id != wanted_diff_id:
            raise DigestMismatch(
                f"the layer unpacks to {stream.diff_id}, the image's configuration says {wanted_diff_id}"
            )
        if lease is not None:
            lease.add((stream.diff_id,))
        digest, size = seal(temporary)
        temporary.replace(store.staged_path(digest))
        sync_folder(store.root / "staging")
    except OSError as error:
        raise from_os_error(error, "converting a layer") from error
    finally:
        temporary.unlink(missing_ok=True)
    record = _record(digest, size, summary, stream, limits)
    if watch and observer:
        watch.close(stream.diff_id, observer)
    store.put_layer_record(record)
    return record


def _read(
    target: Path, limits: Limits, open_source: Callable[[int], Chunks], watch: LayerWatch | None
) -> tuple[Summary, HashedStream, LayerObserver | None]:
    """The layer in *target*: read once, or again without those entries that later ones of the same name supersede."""
    observer = watch.open() if watch else None
    summary, stream = _run(target, limits, open_source(0), frozenset(), observer)
    if summary.superseded:
        observer = watch.open() if watch else None
        summary, stream = _run(target, limits, open_source(1), frozenset(summary.superseded), observer)
        if summary.superseded:
            raise LayerInvalid("the layer changed between two readings")
    return summary, stream, observer


def _record(digest: str, size: int, summary: Summary, stream: HashedStream, limits: Limits) -> LayerRecord:
    """What the store keeps of a layer whose squashfs file has *digest* and *size* (bytes)."""
    return LayerRecord(
        diff_id=stream.diff_id,
        squashfs_digest=digest,
        squashfs_bytes=size,
        unpacked_bytes=stream.unpacked_bytes,
        entries=summary.entries,
        whiteouts=summary.whiteouts,
        opaque_root=summary.opaque_root,
        dropped_xattrs=summary.dropped_xattrs,
        id_shift=limits.id_shift,
        passwd=summary.user_files.get(b"etc/passwd"),
        group=summary.user_files.get(b"etc/group"),
        passwd_hidden=b"etc/passwd" in summary.hidden,
        group_hidden=b"etc/group" in summary.hidden,
    )


def _run(
    target: Path, limits: Limits, compressed: Chunks, skip: frozenset[int], observer: LayerObserver | None
) -> tuple[Summary, HashedStream]:
    stream = HashedStream(compressed, limits)
    squasher = Squasher(target, limits.id_shift)
    try:
        rewriter = Rewriter(
            iter(stream),
            squasher.write,
            max_entries=limits.max_layer_files,
            max_bytes=limits.max_layer_bytes,
            skip=skip,
            observer=observer,
            id_shift=limits.id_shift,
        )
        summary = rewriter.run()
        if not summary.superseded:
            squasher.close()
        return summary, stream
    finally:
        squasher.kill()


def seal(path: Path) -> tuple[str, int]:
    """Sync the finished file, make it read-only, and give its digest and size; the sync and the hash overlap."""
    with path.open("rb") as stream:
        failed: list[OSError] = []

        def sync() -> None:
            try:
                os.fdatasync(stream.fileno())
            except OSError as error:
                failed.append(error)

        syncing = threading.Thread(target=sync)
        syncing.start()
        digest = hashlib.sha256()
        size = 0
        try:
            while chunk := stream.read(READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
        finally:
            syncing.join()
        if failed:
            raise failed[0]
        os.fchmod(stream.fileno(), 0o440)
    return f"sha256:{digest.hexdigest()}", size
