"""Who makes templates: of several processes one, and in it two at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from casemate.isolation.microvm import argv
from casemate.isolation.microvm.errors import TemplateFailed
from casemate.isolation.microvm.kernel import GuestKernel
from casemate.isolation.microvm.template import Recipe, Templates


class Place(Templates):
    """Templates whose making waits for *go*, and fails; *most* is how many were being made together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder, shim="", qemu="", uid=0)
        self.go, self.together = asyncio.Event(), asyncio.Event()
        self.making = self.most = 0

    async def _build(self, recipe: Recipe, key: str) -> None:
        self.making += 1
        self.most = max(self.most, self.making)
        if self.most == 2:
            self.together.set()
        await self.go.wait()
        self.making -= 1
        raise TemplateFailed("not here")


def recipe(megabytes: int) -> Recipe:
    return Recipe(GuestKernel("6.1", Path("/k"), Path("/i"), "d"), "7.2", argv.Accelerator("tcg"), megabytes << 20)


def is_free(folder: Path) -> bool:
    """Whether another process could make templates: the lock is of the open file, so this one can ask, too."""
    number = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(number)
    return True


def test_two_are_made_together_and_no_other_process_makes_any_meanwhile(tmp_path: Path) -> None:
    async def body() -> None:
        place, other = Place(tmp_path), Place(tmp_path)
        wanted = [asyncio.ensure_future(place.get(recipe(size))) for size in (128, 128, 256, 512)]
        async with asyncio.timeout(30):
            await place.together.wait()
        assert not is_free(tmp_path)
        with pytest.raises(TemplateFailed, match="another process"):
            await other.get(recipe(128))
        assert not is_free(tmp_path), "who was refused has taken nothing away"
        place.go.set()
        assert {type(one) for one in await asyncio.gather(*wanted, return_exceptions=True)} == {TemplateFailed}
        assert place.most == 2
        assert is_free(tmp_path)
        other.go.set()
        with pytest.raises(TemplateFailed, match="not here"):
            await other.get(recipe(128))

    asyncio.run(body())
