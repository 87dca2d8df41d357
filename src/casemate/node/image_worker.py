"""The image worker with the scanner: ``python -m casemate.node.image_worker``.

``image`` and ``trust`` are siblings and do not know each other; here the one's tap meets the other's observer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.image.observe import LayerWatch
from casemate.image.worker import main
from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore


def contents_of(state: str) -> LayerWatch:
    """Where the package lists of layers are kept, below the state folder."""
    return ContentsStore(Path(state) / CONTENTS_FOLDER)


if __name__ == "__main__":
    sys.exit(main(contents_of))
