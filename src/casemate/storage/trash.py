"""Folders that are to go: moved aside in one step, deleted afterwards.

What a container wrote may be millions of files, or nested 100,000 deep; its removal must not wait for that, must
not be half done after a crash, and must not recurse in Python. `rm` walks by descriptors and never follows links.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from casemate.host import programs

_RM_TIMEOUT_S = 600.0


class Trash:
    """The folder ``trash`` below *host_state*, on the same file system as what is thrown in."""

    def __init__(self, host_state: Path) -> None:
        self.folder = host_state / "trash"

    def open(self) -> None:
        """Make the folder; what a crash left in it is deleted by the next :meth:`empty`."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def throw(self, path: Path) -> bool:
        """Move *path* in, in one step; False when it is not there. It must hold no mount point."""
        for number in range(1000):
            target = self.folder / f"{path.parent.name}-{path.name}.{number}"
            try:
                target.mkdir(mode=0o700)
            except FileExistsError:
                continue
            try:
                path.rename(target / "it")
            except FileNotFoundError:
                target.rmdir()
                return False
            except BaseException:
                with contextlib.suppress(OSError):
                    target.rmdir()
                raise
            return True
        raise FileExistsError(17, "1,000 of one name wait in the trash", str(path))

    def waiting(self) -> list[Path]:
        """What is still to be deleted."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(self.folder.iterdir())
        return []

    async def empty(self) -> int:
        """Delete what is in the folder; how many entries that were."""
        entries = self.waiting()
        for start in range(0, len(entries), 200):
            names = [os.fspath(entry) for entry in entries[start : start + 200]]
            argv = ["rm", "-rf", "--one-file-system", "--", *names]
            await programs.run(argv, timeout_s=_RM_TIMEOUT_S, max_output_bytes=4096)
        return len(entries)
