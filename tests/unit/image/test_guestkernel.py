"""Guest kernels are fetched by apt; what it cannot give has a remedy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from casemate.image import guestkernel
from casemate.image.guestkernel import KernelPackageMissing


def test_a_package_that_apt_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guestkernel, "PACKAGE", "linux-image-of-nobody")
    with pytest.raises(KernelPackageMissing):
        asyncio.run(guestkernel.fetch(tmp_path))
