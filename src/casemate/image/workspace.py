"""What every job of the worker holds: the store, a lease, limits, a place to report progress, a way to be stopped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from casemate.image.jobs import Limits, Progress
from casemate.image.leases import Lease
from casemate.image.patience import Patience
from casemate.image.records import LayerRecord
from casemate.image.store import Store
from casemate.spec.errors import CasemateError

LOCK_POLL_S = 0.05
REPORT_INTERVAL_S = 0.1


class Stopped(CasemateError):
    """Another part of the job failed, or the job was cancelled."""

    code = "operation.cancelled"
    status = 409
    title = "The operation was cancelled"
    remedy = "Start it again; what was fetched is kept."
    retryable = True


@dataclass(slots=True)
class Workspace:
    """One job's surroundings. *report* may be called from any thread."""

    store: Store
    lease: Lease
    limits: Limits
    report: Callable[[Progress], None]
    stop: threading.Event = field(default_factory=threading.Event)
    patience: Patience = field(default_factory=Patience)
    staged: dict[str, LayerRecord] = field(default_factory=dict)

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def known_layer(self, diff_id: str) -> LayerRecord | None:
        """The layer's record, when it was converted as this job would convert it."""
        record = self.store.layer_record(diff_id)
        return record if record is not None and record.id_shift == self.limits.id_shift else None

    @contextmanager
    def hold(self, name: str, item: str) -> Generator[None]:
        """The store's lock *name*; while another job holds it this waits, says so, and can be stopped."""
        descriptor = self.store.try_lock(name)
        if descriptor is None:
            self.report(Progress(item, "waiting"))
        while descriptor is None:
            if self.stop.wait(LOCK_POLL_S):
                raise Stopped
            descriptor = self.store.try_lock(name)
        try:
            yield
        finally:
            os.close(descriptor)


class Meter:
    """Counts bytes of one item and reports at most ten times a second."""

    def __init__(self, report: Callable[[Progress], None], item: str, stage: str, total_bytes: int) -> None:
        self._report = report
        self._item = item
        self._stage = stage
        self._total = total_bytes
        self._last = 0.0
        self.bytes = 0

    def add(self, count: int) -> None:
        self.bytes += count
        now = time.monotonic()
        if now - self._last >= REPORT_INTERVAL_S:
            self._last = now
            self._report(Progress(self._item, self._stage, self.bytes, self._total))
