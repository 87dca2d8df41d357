"""The observer of one layer's tar stream: picks a few files out of it and gives what they tell.

It satisfies ``casemate.image.observe.LayerObserver`` by its shape; neither layer imports the other. One scanner sees
one reading of one layer, entry by entry, in the order of the stream; the last entry of a name counts.
"""

from __future__ import annotations

from collections.abc import Callable

from casemate.spec.errors import CasemateError
from casemate.trust.packages import leaked
from casemate.trust.packages.binaries import HEAD_BYTES, wanted
from casemate.trust.packages.content import Content
from casemate.trust.packages.distribution import parse_os_release
from casemate.trust.packages.model import (
    DISTRIBUTION_TYPES,
    MAX_FINDINGS,
    MAX_HIDDEN,
    MAX_PACKAGES,
    Distribution,
    LayerContents,
    Leak,
    Package,
    PackageListInvalid,
    Setuid,
    Unreadable,
)
from casemate.trust.packages.routes import DPKG_FILES, EXECUTABLE, OS_RELEASE_PATHS, Route, route

Sink = Callable[[memoryview], None]
_REGULAR = b"0"
_MAX_OS_RELEASE_BYTES = 64 << 10
#: Since the merge of /usr, a package's list may say /lib/x for what lies at /usr/lib/x.
_MERGED = (b"bin/", b"sbin/", b"lib/", b"lib32/", b"lib64/", b"libx32/")


class LayerScanner:
    """Feed it with :meth:`begin`, :meth:`end`, :meth:`hide`; then :meth:`finish` once."""

    def __init__(self) -> None:
        self._path = ""
        self._route: Route | None = None
        self._content: Content | None = None
        self._size = 0
        self._search = self._release = False
        self._ranges: list[tuple[int, int]] | None = None
        self._lists: dict[str, tuple[Package, ...]] = {}
        self._os_release: dict[str, Distribution] = {}
        self._setuid: dict[str, Setuid] = {}
        self._leaks: dict[str, list[Leak]] = {}
        self._unreadable: dict[str, str] = {}
        self._removed: dict[str, None] = {}
        self._opaque: dict[str, None] = {}
        self._owned: set[bytes] = set()
        self._owners: dict[str, tuple[Route, Content]] = {}
        self._packages = 0

    def begin(self, name: bytes, kind: bytes, size_bytes: int, *, mode: int, uid: int, gid: int) -> Sink | None:
        """An entry begins; the answer takes its content piece by piece, or is None when that is of no interest.

        *name*: relative, without ``.`` and ``..``; *kind*: tar's type flag. :meth:`end` follows when a sink was given.
        """
        if kind != _REGULAR:
            return None
        path = name.decode(errors="replace")
        self._forget(path)
        if mode & 0o6000 and (mode & 0o4000 or mode & 0o010) and len(self._setuid) < MAX_FINDINGS:
            self._setuid[path] = Setuid(path, mode & 0o7777, uid, gid)
        found = route(path, mode, size_bytes)
        self._release = path in OS_RELEASE_PATHS
        self._search = found is None and leaked.is_searched(path, size_bytes)
        if size_bytes and (leaks := list(leaked.by_path(path))):
            self._add_leaks(path, leaks)
        if found is None and not self._search and not self._release:
            return None
        limit = found.limit_bytes if found else _MAX_OS_RELEASE_BYTES if self._release else leaked.MAX_SEARCHED_BYTES
        if size_bytes > limit:
            self._fail(path, f"has {size_bytes} bytes; {limit} are read")
            if found is not None and found.parse:
                self._lists[path] = ()
            return None
        self._path, self._route, self._content, self._size = path, found, Content(), size_bytes
        self._ranges = None
        return self._take

    def _take(self, piece: memoryview) -> None:
        content = self._content
        if content is None:
            return
        if self._route is not EXECUTABLE:
            content.append(piece)
            return
        if self._ranges is None and content.size < HEAD_BYTES:
            content.append(piece)
            if content.size >= min(HEAD_BYTES, self._size):
                self._ranges = wanted(content.read(0, min(HEAD_BYTES, self._size)), self._size)
                if not self._ranges:
                    self._content = Content()  # a script, or a library of another kind
            return
        self._take_wanted(content, piece)

    def _take_wanted(self, content: Content, piece: memoryview) -> None:
        """Keep *piece* when a wanted range touches it: a slice would keep all of it in memory just as well."""
        start, end = content.size, content.size + len(piece)
        if any(start < until and begin < end for begin, until in self._ranges or ()):
            content.append(piece)
        else:
            content.skip(len(piece))

    def end(self) -> None:
        """The content of the entry for which a sink was given is complete."""
        path, found, content = self._path, self._route, self._content
        self._content = self._route = None
        if content is None:
            return
        try:
            if self._release:
                self._os_release[path] = parse_os_release(path, content)
            elif self._search:
                self._add_leaks(path, list(leaked.by_content(path, content)))
            elif found is not None:
                self._parse(path, found, content if self._ranges != [] else Content())
        except CasemateError as error:
            self._fail(path, error.detail)

    def _parse(self, path: str, found: Route, content: Content) -> None:
        if found.owned is not None:
            # Which files a package owns is asked at the end, and only when there is a file to ask about.
            self._owners[path] = (found, content)
        if found.parse is None:
            return
        packages: list[Package] = []
        self._lists[path] = ()
        for package in found.parse(path, content):
            packages.append(package)
            self._packages += 1
            if self._packages > MAX_PACKAGES:
                raise PackageListInvalid(f"{path}: brings the layer to more than {MAX_PACKAGES} packages")
        self._lists[path] = tuple(packages)

    def hide(self, name: bytes, *, opaque: bool) -> None:
        """*name* of the layers below is not seen any more; *opaque*: all that is in the folder *name*."""
        where = self._opaque if opaque else self._removed
        if len(where) < MAX_HIDDEN:
            where[name.decode(errors="replace")] = None

    def finish(self) -> LayerContents:
        """What the layer holds."""
        self._mark_owned()
        return LayerContents(
            lists=self._lists,
            os_release=self._os_release,
            setuid=tuple(self._setuid.values()),
            leaks=tuple(leak for leaks in self._leaks.values() for leak in leaks),
            unreadable=tuple(Unreadable(path, reason) for path, reason in self._unreadable.items()),
            removed=tuple(self._removed),
            opaque=tuple(self._opaque),
        )

    def _mark_owned(self) -> None:
        """Note which package files belong to packages of the distribution; JAR files and executables among them."""
        asked: dict[bytes, list[str]] = {}
        for path, packages in self._lists.items():
            if packages and packages[0].type not in DISTRIBUTION_TYPES:
                for name in both_names(path.encode()):
                    asked.setdefault(name, []).append(path)
        if not asked:
            return
        installed = {row.name for rows in self._lists.values() for row in rows if row.type == "deb"}
        for path, (found, content) in self._owners.items():
            assert found.owned is not None
            # A list without its package is nobody's word; anyone could write one.
            if found is DPKG_FILES and list_owner(path) not in installed:
                continue
            try:
                named = found.owned(path, content, asked.keys())
            except PackageListInvalid as error:
                self._fail(path, error.detail)
                continue
            for name in named:
                for owned in asked[name]:
                    self._lists[owned] = tuple(_as_owned(package) for package in self._lists[owned])

    def _add_leaks(self, path: str, leaks: list[Leak]) -> None:
        if leaks and sum(map(len, self._leaks.values())) < MAX_FINDINGS:
            self._leaks.setdefault(path, []).extend(leaks)

    def _fail(self, path: str, reason: str) -> None:
        if len(self._unreadable) < MAX_FINDINGS:
            self._unreadable[path] = reason[:500]

    def _forget(self, path: str) -> None:
        """An entry of this name came before: only the last one counts."""
        for where in (self._lists, self._os_release, self._setuid, self._leaks, self._unreadable, self._owners):
            where.pop(path, None)


def list_owner(path: str) -> str:
    """The package of a dpkg list: ``info/NAME.list``, ``info/NAME:ARCH.list``, ``status.d/NAME.md5sums``."""
    return path.rpartition("/")[2].rpartition(".")[0].partition(":")[0]


def both_names(name: bytes) -> tuple[bytes, ...]:
    """*name* and, where the merge of /usr gave it another, that one too."""
    if name.startswith(_MERGED):
        return (name, b"usr/" + name)
    below = name.removeprefix(b"usr/")
    return (name, below) if below != name and below.startswith(_MERGED) else (name,)


def _as_owned(package: Package) -> Package:
    return Package(
        package.type, package.name, package.version, package.source, package.source_version, package.architecture,
        package.module, owned=True,
    )  # fmt: skip
