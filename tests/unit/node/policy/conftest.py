"""The fixture ``play``: run a scene on a fresh site."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.node.policy.site import Play, Site


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a scene on a fresh site."""

    def run(scene: Play, **settings: str | int) -> None:
        async def go() -> None:
            site = Site(tmp_path, **settings)
            await site.db.open()
            try:
                async with site.core.running():
                    await scene(site)
            finally:
                await site.db.close()

        asyncio.run(go())

    return run
