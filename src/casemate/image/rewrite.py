"""A layer's tar stream, rewritten while it flows into the form that ``tar2sqfs`` and overlayfs take. Pure.

- A whiteout ``.wh.NAME`` becomes a character device 0:0, an opaque mark the attribute ``trusted.overlay.opaque``
  on its folder (OCI image-spec "Layer Filesystem Changeset"; kernel Documentation/filesystems/overlayfs.rst).
- Folders and whiteouts come last: tar2sqfs takes a folder's own entry once only, and an opaque mark may stand
  anywhere after it. A whiteout beside a folder of the same name makes that folder opaque.
- Names are made relative; one that holds ``..``, or is too long for the kernel, is refused. Nothing is unpacked here,
  so symbolic links cannot lead anywhere; an entry below something that is no folder is refused.
- ``trusted.*``, ``system.*`` and ``user.overlay.*`` attributes are dropped: an image must not speak to overlayfs.
- An entry that is there twice counts as its last one. That is seen too late, so :class:`Rewriter` then reports
  which entries to leave out, and a second run over the same bytes does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from casemate.image import sparse
from casemate.image import tarheader as th
from casemate.image.errors import LayerEscapes, LayerInvalid, LayerTooLarge
from casemate.image.tarcursor import Cursor, Sink
from casemate.image.tarheader import Entry

MAX_NAME_BYTES = 4096
MAX_COMPONENT_BYTES = 255
#: As Go's archive/tar: bound on one pax header or one GNU long name.
MAX_EXTENSION_BYTES = 1 << 20
MAX_USER_FILE_BYTES = 1 << 20
#: Kernel: XATTR_SIZE_MAX, and a bound of our own on their number.
MAX_XATTR_BYTES = 64 << 10
MAX_XATTRS = 256
OPAQUE = b"trusted.overlay.opaque"
USER_FILES = (b"etc/passwd", b"etc/group")
_ZEROS = memoryview(bytes(1 << 20))


@dataclass(slots=True)
class Summary:
    """What one run saw. *superseded*: numbers of entries that a later entry of the same name replaces."""

    entries: int = 0
    whiteouts: int = 0
    opaque_root: bool = False
    dropped_xattrs: int = 0
    user_files: dict[bytes, bytes] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)
    superseded: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Extension:
    """What extension headers say of the entry that follows."""

    name: bytes | None = None
    link: bytes | None = None
    records: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.name is not None or self.link is not None or self.records)


class Rewriter:
    """*chunks* (uncompressed tar) in, pieces of the rewritten tar out to *sink*; :meth:`run` once.

    *skip*: numbers of entries to leave out (``superseded`` of a first run).
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        sink: Sink,
        *,
        max_entries: int,
        max_bytes: int,
        skip: frozenset[int] = frozenset(),
        id_shift: int = 0,
    ) -> None:  # fmt: skip
        self._sink = sink
        self._cursor = Cursor(chunks, self._forward)
        self._max_entries = max_entries
        self._bytes_left = max_bytes
        self._skip = skip
        self._shift = id_shift
        self._muted = False
        self._files: dict[bytes, int] = {}
        self._links: set[bytes] = set()
        self._folders: set[bytes] = {b""}
        self._own_folders: dict[bytes, Entry] = {}
        self._opaque: dict[bytes, None] = {}
        self._whiteouts: dict[bytes, Entry] = {}
        self.summary = Summary()

    def run(self) -> Summary:
        """Rewrite the whole stream; raises :class:`LayerInvalid` or one of its kin."""
        cursor = self._cursor
        extension = _Extension()
        while (block := cursor.header()) is not None:
            if block == th.ZERO_BLOCK:
                cursor.drop_header()
                following = cursor.header()
                if following is not None:
                    cursor.drop_header()
                    if following != th.ZERO_BLOCK:
                        raise LayerInvalid("an entry follows a single zero block: readers differ on what that means")
                cursor.drain()
                break
            entry = th.parse(block)
            if entry.kind in (th.PAX, th.PAX_SUN, th.PAX_GLOBAL, th.GNU_LONG_NAME, th.GNU_LONG_LINK):
                self._extend(extension, entry)
                continue
            self._entry(block, entry, extension)
            extension = _Extension()
        if extension:
            raise LayerInvalid("an extension header is the last entry")
        self._finish()
        return self.summary

    def _forward(self, data: bytes | memoryview) -> None:
        if not self._muted:
            self._sink(data)

    def _extend(self, extension: _Extension, entry: Entry) -> None:
        if not 0 <= entry.size <= MAX_EXTENSION_BYTES:
            raise LayerTooLarge(f"an extension header has {entry.size} bytes; {MAX_EXTENSION_BYTES} are allowed")
        self._count()
        self._cursor.drop_header()
        data = self._cursor.take(entry.size, b"an extension header")
        self._cursor.pad(entry.size, keep=False)
        if entry.kind == th.GNU_LONG_NAME:
            extension.name = data.partition(b"\0")[0]
        elif entry.kind == th.GNU_LONG_LINK:
            extension.link = data.partition(b"\0")[0]
        elif entry.kind in (th.PAX, th.PAX_SUN):
            extension.records = th.parse_pax(data)

    def _count(self) -> None:
        self.summary.entries += 1
        if self.summary.entries > self._max_entries:
            raise LayerTooLarge(f"the layer has more than {self._max_entries} entries (image.max_layer_files)")

    def _entry(self, block: bytes, entry: Entry, extension: _Extension) -> None:
        self._count()
        number = self.summary.entries
        pieces = self._apply(entry, extension) if extension else None
        if entry.kind == th.GNU_SPARSE:
            self._cursor.drop_header()
            pieces, real_size = sparse.old_gnu(block, lambda: self._cursor.take(th.BLOCK_BYTES, entry.name))
            stored, entry.size, entry.kind = entry.size, real_size, th.REGULAR
            self._checked(entry)
            self._sparse(entry, number, sparse.check(pieces, real_size, stored), stored)
            return
        if entry.kind not in th.KNOWN:
            raise LayerInvalid(f"{entry.name[:200]!r} has type {entry.kind!r}, which is no file")
        if entry.size < 0 or entry.size > self._bytes_left:
            raise LayerTooLarge(
                f"{entry.name[:200]!r} has {entry.size} bytes; {self._bytes_left} are left to the layer "
                "(image.max_layer_bytes)"
            )
        stored = 0 if entry.kind in th.HEADER_ONLY else entry.size
        raw_name = entry.name
        self._checked(entry)
        base = entry.name.rpartition(b"/")[2]
        if base.startswith(b".wh."):
            self._cursor.drop_header()
            self._skip_content(stored, entry.name)
            self._mark(entry, base)
        elif entry.kind == th.FOLDER:
            self._cursor.drop_header()
            self._folder(entry)
        elif pieces is not None:
            self._cursor.drop_header()
            self._pax_sparse(entry, number, pieces, stored, extension)
        else:
            self._file(entry, number, plain=not extension and not self._shift and _is_plain(block, entry, raw_name))

    def _checked(self, entry: Entry) -> None:
        """Bring *entry* into bounds: names, ids, times, devices."""
        entry.name = clean_name(entry.name)
        if any(part.startswith(b".wh.") for part in entry.name.split(b"/")[:-1]):
            raise LayerInvalid(f"{entry.name[:200]!r} lies below a whiteout")
        entry.uid += self._shift
        entry.gid += self._shift
        if not (self._shift <= entry.uid <= th.MAX_ID and self._shift <= entry.gid <= th.MAX_ID):
            raise LayerInvalid(f"{entry.name[:200]!r} belongs to {entry.uid}:{entry.gid}; ids are 0 to {th.MAX_ID}")
        entry.mode &= 0o7777
        entry.mtime = min(max(entry.mtime, 0), th.MAX_MTIME)
        if entry.kind == th.HARD_LINK:
            entry.link = clean_name(entry.link)
        elif entry.kind == th.SYMLINK and not 0 < len(entry.link) < MAX_NAME_BYTES:
            raise LayerInvalid(
                f"{entry.name[:200]!r} is a symbolic link to {len(entry.link)} bytes; 1 to 4095 are allowed"
            )
        elif entry.kind in (th.CHARACTER, th.BLOCK) and not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise LayerInvalid(f"{entry.name[:200]!r} is device {entry.major}:{entry.minor}")

    def _apply(self, entry: Entry, extension: _Extension) -> list[sparse.Piece] | None:
        """Put the extension's values into *entry*; the sparse map, when the records hold one."""
        entry.name = extension.name if extension.name is not None else entry.name
        entry.link = extension.link if extension.link is not None else entry.link
        for key, value in extension.records:
            match key:
                case b"path" if value:
                    entry.name = value
                case b"linkpath" if value:
                    entry.link = value
                case b"size":
                    entry.size = _decimal(value, key)
                case b"uid":
                    entry.uid = _decimal(value, key)
                case b"gid":
                    entry.gid = _decimal(value, key)
                case b"mtime":
                    entry.mtime = 0 if value.startswith(b"-") else _decimal(value.partition(b".")[0] or b"0", key)
                case b"GNU.sparse.name" if value:
                    entry.name = value
                case _ if key.startswith(th.XATTR):
                    self._xattr(entry, key.removeprefix(th.XATTR), value)
                case _:
                    pass
        return sparse.from_pax(extension.records)

    def _xattr(self, entry: Entry, name: bytes, value: bytes) -> None:
        if not name.startswith((b"user.", b"security.")) or name.startswith(b"user.overlay.") or len(name) > 255:
            self.summary.dropped_xattrs += 1
        elif len(value) > MAX_XATTR_BYTES or len(entry.xattrs) >= MAX_XATTRS:
            raise LayerTooLarge(f"attribute {name!r} of {entry.name[:200]!r} has {len(value)} bytes or is one too many")
        else:
            entry.xattrs[name] = value

    # what an entry is

    def _file(self, entry: Entry, number: int, *, plain: bool) -> None:
        cursor = self._cursor
        stored = 0 if entry.kind in th.HEADER_ONLY else entry.size
        entry.size = stored
        self._bytes_left -= stored
        if entry.kind == th.HARD_LINK:
            if entry.link not in self._files:
                raise LayerInvalid(
                    f"{entry.name[:200]!r} is a hard link to {entry.link[:200]!r}, which is not in the layer before it"
                )
            self._links.add(entry.link)
        if not self._claim(entry.name, number):
            cursor.drop_header()
            self._skip_content(stored, entry.name)
            return
        if plain:
            cursor.keep_header()
        else:
            cursor.drop_header()
            cursor.emit(th.build(entry))
        if entry.name in USER_FILES:
            self._user_file(entry, stored)
        else:
            cursor.keep(stored, entry.name)
        cursor.pad(stored, keep=True)

    def _user_file(self, entry: Entry, stored: int) -> None:
        self.summary.user_files.pop(entry.name, None)
        if entry.kind == th.REGULAR and stored <= MAX_USER_FILE_BYTES:
            data = self._cursor.take(stored, entry.name)
            self.summary.user_files[entry.name] = data
            self._cursor.emit(data)
        else:
            self._cursor.keep(stored, entry.name)

    def _pax_sparse(
        self, entry: Entry, number: int, pieces: list[sparse.Piece], stored: int, extension: _Extension
    ) -> None:
        records = dict(extension.records)
        real_size = _decimal(
            records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", b"")), b"GNU.sparse.size"
        )
        taken = 0
        if records.get(b"GNU.sparse.major") == b"1":
            pieces, taken = sparse.from_content(lambda: self._cursor.take(th.BLOCK_BYTES, entry.name))
        entry.size = real_size
        self._sparse(entry, number, sparse.check(pieces, real_size, stored - taken), stored - taken)

    def _sparse(self, entry: Entry, number: int, pieces: list[sparse.Piece], stored: int) -> None:
        """Write a sparse file out in full: squashfs finds the holes again; its size is bounded like any other."""
        if entry.size > self._bytes_left:
            raise LayerTooLarge(
                f"{entry.name[:200]!r} has {entry.size} bytes; {self._bytes_left} are left to the layer "
                "(image.max_layer_bytes)"
            )
        self._bytes_left -= entry.size
        cursor = self._cursor
        if not self._claim(entry.name, number):
            self._skip_content(stored, entry.name)
            return
        cursor.emit(th.build(entry))
        end = 0
        for offset, length in pieces:
            self._zeros(offset - end)
            cursor.keep(length, entry.name)
            end = offset + length
        self._zeros(entry.size - end)
        cursor.pad(stored, keep=False)
        self._zeros(-entry.size % th.BLOCK_BYTES)

    def _zeros(self, count: int) -> None:
        while count > 0:
            step = min(count, len(_ZEROS))
            self._cursor.emit(_ZEROS[:step])
            count -= step

    def _skip_content(self, stored: int, name: bytes) -> None:
        self._cursor.drop(stored, name)
        self._cursor.pad(stored, keep=False)

    def _folder(self, entry: Entry) -> None:
        name = entry.name
        if name in self._files:
            raise LayerInvalid(f"{name[:200]!r} is a folder and something else in one layer")
        self._parents(name)
        self._folders.add(name)
        self._own_folders[name] = entry

    def _mark(self, entry: Entry, base: bytes) -> None:
        parent = entry.name.rpartition(b"/")[0]
        if base == b".wh..wh..opq":
            self._parents(parent + b"/x" if parent else b"x")
            self._opaque[parent] = None
            return
        if base.startswith(b".wh..wh."):
            return  # what AUFS kept for itself; Docker passes over it too
        hidden = base[4:]
        if hidden in (b"", b".", b".."):
            raise LayerEscapes(f"{entry.name[:200]!r} is a whiteout of {hidden!r}")
        name = parent + b"/" + hidden if parent else hidden
        self._parents(name)
        self._whiteouts[name] = Entry(name, th.CHARACTER, mode=0, uid=self._shift, gid=self._shift, mtime=entry.mtime)

    def _claim(self, name: bytes, number: int) -> bool:
        """Note a file's name; False when this entry is to be left out."""
        if number in self._skip:
            return False
        if not name or name in self._folders:
            raise LayerInvalid(f"{name[:200] or b'/'!r} is a folder and something else in one layer")
        self._parents(name)
        earlier = self._files.get(name)
        if earlier is not None:
            if name in self._links:
                raise LayerInvalid(f"{name[:200]!r} is there twice, and a hard link between means the first")
            self.summary.superseded.add(earlier)
            self._muted = True
        self._files[name] = number
        return True

    def _parents(self, name: bytes) -> None:
        parent = name.rpartition(b"/")[0]
        while parent not in self._folders:
            if parent in self._files:
                raise LayerInvalid(f"{name[:200]!r} lies below {parent[:200]!r}, which is no folder in this layer")
            self._folders.add(parent)
            parent = parent.rpartition(b"/")[0]

    def _finish(self) -> None:
        for name, whiteout in self._whiteouts.items():
            self.summary.whiteouts += 1
            if name in self._folders:
                self._opaque[name] = None
            elif name not in self._files:
                self._forward(th.build(whiteout))
        self.summary.opaque_root = b"" in self._opaque
        for name in self._opaque:
            folder = self._own_folders.setdefault(
                name, Entry(name, th.FOLDER, mode=0o755, uid=self._shift, gid=self._shift)
            )
            folder.xattrs[OPAQUE] = b"y"
        for name, folder in self._own_folders.items():
            folder.name = name or b"./"
            folder.size = 0
            self._forward(th.build(folder))
        self._forward(bytes(2 * th.BLOCK_BYTES))
        for name in USER_FILES:
            if self._hides(name):
                self.summary.hidden.add(name)

    def _hides(self, name: bytes) -> bool:
        folder = name.rpartition(b"/")[0]
        return (
            any(path in self._files or path in self._whiteouts for path in (name, folder))
            or name in self._folders
            or folder in self._opaque
            or b"" in self._opaque
        )


def clean_name(name: bytes) -> bytes:
    """*name* relative and without ``.`` and empty parts; raises for ``..``, NUL and names that are too long."""
    if b"\0" in name:
        raise LayerInvalid(f"name {name[:200]!r} holds a NUL byte")
    if len(name) > MAX_NAME_BYTES:
        raise LayerInvalid(f"a name of {len(name)} bytes ({name[:60]!r}...); {MAX_NAME_BYTES} are allowed")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise LayerEscapes(f"name {name[:200]!r} holds '..'")
    if parts and len(max(parts, key=len)) > MAX_COMPONENT_BYTES:
        raise LayerInvalid(f"name {name[:60]!r}... has a part longer than {MAX_COMPONENT_BYTES} bytes")
    return b"/".join(parts)


def _is_plain(block: bytes, entry: Entry, raw_name: bytes) -> bool:
    """Whether tar2sqfs reads *block* exactly as we did, so that it can pass unchanged."""
    magic = block[257:263]
    return (
        (magic == b"ustar\0" or (magic == b"ustar " and not block[345:].strip(b"\0")))
        and block[156] in b"012"
        and (entry.kind == th.REGULAR or entry.size == 0)
        and raw_name.removeprefix(b"./") == entry.name
        and max(block[100], block[108], block[116], block[124], block[136]) < 0x80
        and block[100:108].strip(b" \0")[:-4].strip(b"0") == b""
        and block[136:148].strip(b" \0") <= b"37777777777"
        and entry.kind != th.HARD_LINK
    )


def _decimal(value: bytes, key: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise LayerInvalid(f"pax record {key.decode(errors='replace')} holds {value[:30]!r}, which is no number")
    return int(value)
