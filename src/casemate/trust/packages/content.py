"""A file's content as the pieces in which it came, without copying them together."""

from __future__ import annotations

from bisect import bisect_right

from casemate.trust.packages.model import PackageListInvalid


class Content:
    """Pieces in order; :meth:`read` takes a range as it would from a file, :meth:`whole` joins them."""

    __slots__ = ("_pieces", "_starts", "size")

    def __init__(self, *pieces: bytes | memoryview) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._starts: list[int] = []
        self.size = 0
        for piece in pieces:
            self.append(piece)

    def append(self, piece: bytes | memoryview) -> None:
        if len(piece):
            self._starts.append(self.size)
            self._pieces.append(piece)
            self.size += len(piece)

    def skip(self, count: int) -> None:
        """The next *count* bytes were not kept; :meth:`read` refuses them, :meth:`whole` must not be asked for."""
        if count:
            self._starts.append(self.size)
            self._pieces.append(b"")
            self.size += count

    def read(self, offset: int, count: int) -> bytes:
        """Exactly *count* bytes from *offset*; raises :class:`PackageListInvalid` when the file has fewer."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise PackageListInvalid(f"bytes {offset} to {offset + count} of a file of {self.size}")
        parts = []
        number = bisect_right(self._starts, offset) - 1
        while count:
            begin = offset - self._starts[number]
            part = self._pieces[number][begin : begin + count]
            if not len(part):
                raise PackageListInvalid(f"bytes {offset} to {offset + count} of a file of {self.size} were not kept")
            parts.append(part)
            offset += len(part)
            count -= len(part)
            number += 1
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def whole(self) -> bytes:
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)

    def text(self) -> str:
        """All of it as UTF-8; what is not becomes the replacement character."""
        return self.whole().decode(errors="replace")
