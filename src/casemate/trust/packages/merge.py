"""The layers of an image, bottom to top, to what a container of it sees."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from casemate.trust.packages.distribution import end_of_life
from casemate.trust.packages.model import (
    DISTRIBUTION_TYPES,
    Distribution,
    LayerContents,
    Leak,
    Package,
    Setuid,
    Unreadable,
)

#: Distributions whose images hold a package list, even the smallest; without one, something was hidden or removed.
_KEEPS_A_LIST = frozenset((
    "debian", "ubuntu", "alpine", "rhel", "centos", "almalinux", "rocky", "fedora", "ol", "amzn",
    "opensuse-leap", "sles",
    "wolfi", "chainguard",
))  # fmt: skip


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """A package, the file that tells of it, and the number of the layer (0 is the lowest) that brought the file."""

    package: Package
    path: str
    layer: int


class FoundLeak(msgspec.Struct, frozen=True, omit_defaults=True):
    """A leak; *hidden*: a layer above removes the file, from the container's sight and from nobody else's."""

    leak: Leak
    layer: int
    hidden: bool = False


class ImageContents(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image holds. It was wholly scanned when *unreadable* is empty."""

    packages: tuple[Found, ...] = ()
    distribution: Distribution | None = None
    end_of_life: str | None = None
    setuid: tuple[Setuid, ...] = ()
    leaks: tuple[FoundLeak, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


class _Hidden:
    """What one layer takes away from those below."""

    def __init__(self, layer: LayerContents) -> None:
        self._removed = frozenset(layer.removed)
        self._opaque = frozenset(layer.opaque)
        self._written = layer.lists.keys() | layer.os_release.keys() | {row.path for row in layer.unreadable}

    def __call__(self, path: str) -> bool:
        if path in self._removed or path in self._written:
            return True
        if not self._removed and not self._opaque:
            return False
        if "" in self._opaque:
            return True
        place = path.rfind("/")
        while place > 0:
            folder = path[:place]
            if folder in self._removed or folder in self._opaque:
                return True
            place = path.rfind("/", 0, place)
        return False


def merge(layers: Sequence[LayerContents]) -> ImageContents:
    """What is seen with all *layers* in place (bottom to top).

    A file that an upper layer repeats with the same packages stays owned as it was below: copying a tree, or a change
    of its mode, makes it nobody else's.
    """
    lists: dict[str, tuple[int, tuple[Package, ...]]] = {}
    releases: dict[str, Distribution] = {}
    setuid: dict[str, Setuid] = {}
    unreadable: dict[str, Unreadable] = {}
    leaks: list[FoundLeak] = []
    for number, layer in enumerate(layers):
        hidden = _Hidden(layer)
        below = lists
        lists = {path: row for path, row in lists.items() if not hidden(path)}
        releases = {path: row for path, row in releases.items() if not hidden(path)}
        setuid = {path: row for path, row in setuid.items() if not hidden(path)}
        unreadable = {path: row for path, row in unreadable.items() if not hidden(path)}
        leaks = [FoundLeak(row.leak, row.layer, row.hidden or hidden(row.leak.path)) for row in leaks]
        for path, packages in layer.lists.items():
            previous = below.get(path)
            lists[path] = previous if previous and _same(previous[1], packages) else (number, packages)
        releases |= layer.os_release
        setuid |= {row.path: row for row in layer.setuid}
        unreadable |= {row.path: row for row in layer.unreadable}
        leaks += [FoundLeak(leak, number) for leak in layer.leaks]
    distribution = releases.get("etc/os-release") or releases.get("usr/lib/os-release")
    if (
        distribution
        and distribution.id in _KEEPS_A_LIST
        and not any(_of_distribution(row) for _, row in lists.values())
    ):
        reason = f"the image says it is {distribution.id}, and holds no package list of it that can be read"
        unreadable.setdefault("etc/os-release", Unreadable("etc/os-release", reason))
    return ImageContents(
        packages=tuple(Found(package, path, number) for path, (number, row) in lists.items() for package in row),
        distribution=distribution,
        end_of_life=end_of_life(distribution) if distribution else None,
        setuid=tuple(setuid.values()),
        leaks=tuple(leaks),
        unreadable=tuple(unreadable.values()),
    )


def _of_distribution(packages: tuple[Package, ...]) -> bool:
    return bool(packages) and packages[0].type in DISTRIBUTION_TYPES


def _same(below: tuple[Package, ...], above: tuple[Package, ...]) -> bool:
    """Equal but for ownership."""
    return len(below) == len(above) and all(
        (one.type, one.name, one.version) == (other.type, other.name, other.version)
        for one, other in zip(below, above, strict=True)
    )
