"""Named volumes: folders of root's, bound into pods with their owners mapped.

On disk a volume's files belong to 0, 1, ... as its users number them, whatever range a pod has: so a volume moves
from pod to pod without any chown.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable, mounts, programs
from casemate.spec.errors import NotFound, ProgramFailed, TimedOut
from casemate.spec.ids import check_name, check_project
from casemate.storage.trash import Trash

_DU_TIMEOUT_S = 30.0


class VolumeMissing(NotFound):
    code = "storage.volume_missing"
    title = "No such volume"
    remedy = "Volumes are made by `casemate run -v NAME:/path`; list what is there with `casemate system df`."


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume: whose, its name, and its folder."""

    project: str
    name: str
    data: Path


class Volumes:
    """The volumes below *host_state*."""

    def __init__(self, host_state: Path, trash: Trash) -> None:
        self.folder = host_state / "volumes"
        self._trash = trash

    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o711)

    def find(self, project: str, name: str) -> Volume:
        """The volume; raises :class:`VolumeMissing`."""
        volume = self._volume(project, name)
        if not volume.data.is_dir():
            raise VolumeMissing(f"volume {name} of project {project} does not exist", volume=name)
        return volume

    def create(self, project: str, name: str) -> Volume:
        """The volume, made when it is not there."""
        volume = self._volume(project, name)
        if not volume.data.is_dir():
            volume.data.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            volume.data.mkdir(exist_ok=True, mode=0o755)
            volume.data.chmod(0o755)
            durable.sync_folder(volume.data.parent)
            durable.sync_folder(volume.data.parent.parent)
        return volume

    def remove(self, project: str, name: str) -> bool:
        """Remove it with its content; False when it was not there. The caller knows that nobody uses it."""
        gone = self._trash.throw(self._volume(project, name).data.parent)
        with contextlib.suppress(OSError):
            (self.folder / project).rmdir()
        return gone

    def list(self, project: str | None = None) -> list[Volume]:
        """The volumes of *project*, or all."""
        found = []
        for data in sorted(self.folder.glob("*/*/_data")):
            volume = Volume(data.parts[-3], data.parts[-2], data)
            if project in (None, volume.project):
                found.append(volume)
        return found

    async def used_bytes(self, volume: Volume) -> int:
        """Bytes on disk; -1 when they could not be counted in time."""
        try:
            done = await programs.run(["du", "-s", "-x", "-B1", "--", str(volume.data)], timeout_s=_DU_TIMEOUT_S)
        except (ProgramFailed, TimedOut):
            return -1
        return int(done.stdout.split(b"\t", 1)[0])

    def bind(self, volume: Volume, target: Path, userns_fd: int, *, read_only: bool = False) -> None:
        """Bind *volume* at the folder *target*, its owners mapped by *userns_fd*; without devices.

        set-uid files keep their bit: in the pod they are of the pod's own ids.
        """
        target.mkdir(parents=True, exist_ok=True, mode=0o755)
        mounts.bind(volume.data, target, read_only=read_only, idmap_fd=userns_fd, attributes=4)

    def clone_fd(self, volume: Volume, userns_fd: int) -> int:
        """The same, detached, as a descriptor for a confined child."""
        number = mounts.idmapped_clone_fd(volume.data, userns_fd, read_only=False)
        try:
            # The mount's own descriptor only names it (O_PATH); the child lists the folder and sets its owner.
            return os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(number)

    def is_empty(self, volume: Volume) -> bool:
        """Whether there is nothing in it: only then is it filled from the image."""
        with os.scandir(volume.data) as entries:
            return next(iter(entries), None) is None

    def _volume(self, project: str, name: str) -> Volume:
        return Volume(project, name, self.folder / check_project(project) / check_name(name, "volume") / "_data")
