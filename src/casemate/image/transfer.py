"""One layer comes in: fetched (or taken up where it stopped), hashed, stored and converted while it flows."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Generator, Iterator

from casemate.image.convert import READ_BYTES, convert_layer
from casemate.image.errors import BodyCutOff, DigestMismatch, LayerInvalid, RegistryError, from_os_error
from casemate.image.http import ATTEMPTS, Client, network_error
from casemate.image.jobs import Progress
from casemate.image.records import LayerRecord, LayerRef
from casemate.image.registry import Repository
from casemate.image.workspace import Meter, Workspace
from casemate.spec.errors import Corrupt

QUEUE_CHUNKS = 32
QUEUE_POLL_S = 0.1


class Download:
    """One blob from *place* into the store. :meth:`chunks` yields all of it, also what was here already."""

    def __init__(self, work: Workspace, client: Client, place: Repository, layer: LayerRef) -> None:
        self._work = work
        self._client = client
        self._place = place
        self._layer = layer
        self._hash = hashlib.sha256()
        self.resumed = False
        self.transferred_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        """Fetch; at the end the blob is verified, synced and visible. The blob's lock must be held."""
        layer = self._layer
        path = self._work.store.ingest_path(layer.digest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            offset = yield from self._kept(descriptor)
            yield from self._fetch(descriptor, offset)
            found = f"sha256:{self._hash.hexdigest()}"
            if found != layer.digest:
                path.unlink(missing_ok=True)
                raise DigestMismatch(
                    f"layer {layer.digest} from {self._place} hashes to {found}", wanted=layer.digest, found=found
                )
            os.fdatasync(descriptor)
            self._work.store.commit_blob(path, layer.digest)
        except OSError as error:
            raise from_os_error(error, f"storing layer {layer.digest}") from error
        finally:
            if not os.fstat(descriptor).st_size:
                path.unlink(missing_ok=True)  # nothing to take up again
            os.close(descriptor)

    def _kept(self, descriptor: int) -> Generator[bytes, None, int]:
        size = os.fstat(descriptor).st_size
        if size > self._layer.size_bytes:
            os.ftruncate(descriptor, 0)
            size = 0
        self.resumed = size > 0
        offset = 0
        while offset < size:
            chunk = os.read(descriptor, min(READ_BYTES, size - offset))
            if not chunk:
                break
            self._hash.update(chunk)
            offset += len(chunk)
            yield chunk
        return offset

    def _fetch(self, descriptor: int, offset: int) -> Iterator[bytes]:
        layer = self._layer
        meter = Meter(self._work.report, layer.digest, "downloading", layer.size_bytes)
        meter.add(offset)
        attempt = 0
        while offset < layer.size_bytes:
            start = offset
            try:
                for chunk in self._body(offset):
                    self._work.check()
                    offset += len(chunk)
                    if offset > layer.size_bytes:
                        raise DigestMismatch(
                            f"layer {layer.digest} from {self._place} has more than the "
                            f"{layer.size_bytes} bytes of its manifest"
                        )
                    self._hash.update(chunk)
                    _write(descriptor, chunk)
                    self.transferred_bytes += len(chunk)
                    meter.add(len(chunk))
                    yield chunk
                if offset < layer.size_bytes:
                    raise BodyCutOff(
                        f"layer {layer.digest} from {self._place} ends after {offset} of {layer.size_bytes} bytes"
                    )
            except (BodyCutOff, RegistryError) as error:
                # Progress renews the right to try: a slow link that drops often still ends.
                attempt = 1 if offset > start else attempt + 1
                if not error.retryable or attempt >= ATTEMPTS or not self._client.wait(attempt):
                    raise

    def _body(self, offset: int) -> Iterator[bytes]:
        layer = self._layer
        with self._place.blob(layer.digest, offset) as answer:
            skip = offset if answer.status == 200 else 0
            if answer.status == 206 and not answer.header("Content-Range").startswith(f"bytes {offset}-"):
                raise RegistryError(
                    f"{self._place} answers bytes {answer.header('Content-Range')[:60]!r}, asked for were {offset}-"
                )
            length = answer.length
            if length is not None and length != layer.size_bytes - offset + skip:
                raise DigestMismatch(
                    f"layer {layer.digest} from {self._place} has Content-Length {length}; "
                    f"its manifest leaves {layer.size_bytes - offset + skip}"
                )
            chunks = answer.chunks()
            while True:
                try:
                    chunk = next(chunks, b"")
                except Exception as error:
                    wrapped = network_error(error, f"layer {layer.digest} from {self._place}")
                    if wrapped is None:
                        raise
                    raise wrapped from error
                if not chunk:
                    return
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                    if not chunk:
                        continue
                yield chunk


class Feeder:
    """Runs a source of chunks in a thread of its own and hands them on through a bounded queue."""

    def __init__(self, source: Iterator[bytes], stop: threading.Event) -> None:
        self._source = source
        self._stop = stop
        self._closed = threading.Event()
        self._ended = False
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUE_CHUNKS)
        self._thread = threading.Thread(target=self._run, name="feeder")
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while not self._ended:
            item = self._queue.get()
            if item is None:
                self._ended = True
                return
            if isinstance(item, BaseException):
                self._ended = True
                raise item
            yield item

    def close(self) -> None:
        """End the thread whether or not its source is done."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for chunk in self._source:
                if not self._put(chunk):
                    return
        except BaseException as error:  # it is raised again in the thread that reads
            last = error
        self._put(last)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=QUEUE_POLL_S)
                return True
            except queue.Full:
                continue
        return False


def read_blob_chunks(work: Workspace, digest: str) -> Iterator[bytes]:
    """A stored blob in chunks of 1 MiB, verified when its last byte was read."""
    found = hashlib.sha256()
    with work.store.open_blob(digest) as stream:
        while chunk := stream.read(READ_BYTES):
            work.check()
            found.update(chunk)
            yield chunk
    if f"sha256:{found.hexdigest()}" != digest:
        work.store.blob_path(digest).unlink(missing_ok=True)
        raise Corrupt(f"blob {digest} did not match its digest; it was removed", digest=digest)


def bring_layer(
    work: Workspace, client: Client, place: Repository, layer: LayerRef, *, convert: bool
) -> tuple[LayerRecord | None, int]:
    """Make *layer* present: its blob stored, with *convert* its squashfs known. The record and bytes transferred."""
    store = work.store
    with work.hold(f"blob-{layer.digest[7:]}", layer.digest):
        known = work.known_layer(layer.diff_id)
        if store.has_blob(layer.digest, layer.size_bytes) and (known is not None or not convert):
            work.report(Progress(layer.digest, "shared", layer.size_bytes, layer.size_bytes))
            return known, 0
        for attempt in (1, 2):
            download = None
            if not store.has_blob(layer.digest, layer.size_bytes):
                download = Download(work, client, place, layer)
            try:
                record = _receive(work, download, layer, convert=convert and known is None)
            except (DigestMismatch, Corrupt, LayerInvalid):
                # What was kept of an earlier attempt may have been damaged: once more, from the first byte.
                damaged = download is None or download.resumed
                if attempt == 2 or not damaged:
                    raise
                store.ingest_path(layer.digest).unlink(missing_ok=True)
            else:
                work.report(Progress(layer.digest, "done", layer.size_bytes, layer.size_bytes))
                return record or known, download.transferred_bytes if download else 0
    raise AssertionError("unreachable")


def _receive(work: Workspace, download: Download | None, layer: LayerRef, *, convert: bool) -> LayerRecord | None:
    if not convert:
        if download is not None:
            for _ in download.chunks():
                pass
        return None
    with work.hold(f"diff-{layer.diff_id[7:]}", layer.digest):
        known = work.known_layer(layer.diff_id)
        if known is not None and download is None:
            return known
        feeder = Feeder(download.chunks() if download else read_blob_chunks(work, layer.digest), work.stop)
        try:
            sources = iter((feeder,))

            def open_source(attempt: int) -> Iterator[bytes]:
                return iter(next(sources)) if attempt == 0 else read_blob_chunks(work, layer.digest)

            try:
                record = convert_layer(work.store, layer.diff_id, work.limits, open_source)
            except LayerInvalid:
                for _ in feeder:  # bytes that are not the digest's are the registry's fault, and are told as such
                    pass
                raise
            for _ in feeder:  # what follows the archive's end still has to be stored and verified
                pass
        finally:
            feeder.close()
        work.staged[record.squashfs_digest] = record
        return record


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
