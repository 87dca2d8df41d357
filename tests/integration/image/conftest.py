"""Stores, workspaces and peers for tests of the image layer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from casemate.image.jobs import Limits
from casemate.image.leases import Lease
from casemate.image.patience import Patience
from casemate.image.store import Store
from casemate.image.workspace import Workspace


@pytest.fixture
def work(tmp_path):
    store = Store(tmp_path / "state")
    store.create()
    reports = []
    made = Workspace(store, Lease(store, os.getpid()), Limits(), reports.append, patience=Patience(0.01, 0.1, 0.05))
    yield made
    made.stop.set()
