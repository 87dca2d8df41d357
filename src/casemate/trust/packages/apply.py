"""Effects: the contents of layers, kept as one file for each, by diff_id and scanner version.

The store is the other side of the image worker's tap: it gives an observer for a reading, and keeps what that found
once the layer's digest is checked. A file that is damaged, or of another scanner, counts as not there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from casemate.host.durable import read_bounded, remove, write_atomic
from casemate.spec.errors import CasemateError
from casemate.spec.ids import digest_hex
from casemate.trust.packages.model import SCANNER_VERSION, LayerContents, PackageListInvalid
from casemate.trust.packages.scanner import LayerScanner

#: Below casemated's state folder.
CONTENTS_FOLDER = "contents"
#: 200,000 packages of 150 bytes, and findings.
MAX_BYTES = 256 << 20


class LayerNotScanned(CasemateError):
    code = "trust.layer_not_scanned"
    status = 409
    title = "There is no package list of a layer"
    remedy = "Have it made: `casemate image pull IMAGE`."
    retryable = True


class ContentsStore:
    """Contents below *root*. Satisfies ``casemate.image.observe.LayerWatch`` by its shape; safe in threads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> LayerScanner:
        return LayerScanner()

    def close(self, diff_id: str, observer: object) -> None:
        """Keep what *observer*, which came from :meth:`open`, found in the layer *diff_id*."""
        if not isinstance(observer, LayerScanner):
            raise PackageListInvalid(f"{diff_id}: its observer is a {type(observer).__name__}, none of this store's")
        path = self._path(diff_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Can be made anew from the layer: a power cut may lose it.
        write_atomic(path, msgspec.json.encode(observer.finish()), mode=0o640, sync=False)

    def load(self, diff_id: str) -> LayerContents:
        """What the layer *diff_id* holds; raises :class:`LayerNotScanned`."""
        path = self._path(diff_id)
        try:
            found = msgspec.json.decode(read_bounded(path, MAX_BYTES), type=LayerContents)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LayerNotScanned(f"{diff_id}: {type(error).__name__}", diff_id=diff_id) from error
        if found.scanner_version != SCANNER_VERSION:
            raise LayerNotScanned(
                f"{diff_id}: scanned by version {found.scanner_version}, not {SCANNER_VERSION}", diff_id=diff_id
            )
        return found

    def has(self, diff_id: str) -> bool:
        """Whether there is a list of the layer *diff_id*; whether it can be read, :meth:`load` finds out."""
        return self._path(diff_id).exists()

    def drop(self, diff_id: str) -> None:
        """The layer is gone."""
        remove(self._path(diff_id), sync=False)

    def _path(self, diff_id: str) -> Path:
        return self.root / f"v{SCANNER_VERSION}" / f"{digest_hex(diff_id)}.json"
