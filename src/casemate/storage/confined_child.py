"""Child that works on untrusted trees: becomes the pod's root, sees nothing but its tree, and only then reads it.

Run as a file (``python -I -S``), with a JSON object as its only argument and data on descriptors 0 and 1. It
imports only the standard library and :mod:`casemate.storage.inside`, and all of it *before* it enters the tree:
what is inside must never be loaded as code (no late import, no NSS lookup of names, no codec).

What it gives up, in this order, before the first look at the tree: resources beyond its limits, the host's
identity (the pod's user namespace, where root is an unprivileged id of the host), the host's file tree (its own
mount namespace with the tree as its root, all else unmounted), the network, every capability but those for
files, and the right to gain any by execve.
"""

import codecs
import errno
import json
import os
import sys
import tarfile

sys.path.insert(0, __file__.rsplit("/", 3)[0])

from casemate.storage.inside.archive import archive
from casemate.storage.inside.compare import diff, usage
from casemate.storage.inside.confine import confine
from casemate.storage.inside.copy import copy_up
from casemate.storage.inside.extract import extract
from casemate.storage.inside.tree import Refused

_CHUNK = 1 << 20
_TO_STREAM = {"archive": archive, "diff": diff, "usage": usage}


def main() -> int:
    task = json.loads(sys.argv[1])
    # Loaded now: error texts and file names must not load a codec out of the tree.
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    # The C library's name service would be loaded from the tree; names of users are of no use here anyway.
    tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]
    try:
        confine(task)
        sys.path = []
        if task["task"] == "extract":
            extract(task, os.fdopen(0, "rb", closefd=False))
        elif task["task"] == "copy_up":
            copy_up(task)
        else:
            with os.fdopen(1, "wb", buffering=_CHUNK, closefd=False) as out:
                _TO_STREAM[task["task"]](task, out)
    except Refused as error:
        return _fail(3, str(error))
    except FileNotFoundError as error:
        return _fail(4, f"{error.filename or ''}: no such file or folder")
    except BrokenPipeError:
        return 6
    except tarfile.TarError as error:
        return _fail(3, f"the input is not a sound tar: {error}")
    except OSError as error:
        if error.errno == errno.EROFS:
            return _fail(3, f"{error.filename or 'the target'} is read-only in the container")
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _fail(5 if full else 2, f"{error.strerror} ({error.filename or 'no name'})")
    except (ValueError, MemoryError, RecursionError, EOFError) as error:
        return _fail(3, f"{type(error).__name__}: {error}")
    return 0


def _fail(code: int, text: str) -> int:
    os.write(2, text[:2000].encode("utf-8", "replace"))
    return code


if __name__ == "__main__":
    # No clean-up of the interpreter: it could import.
    os._exit(main())
