"""The entry of casemate-hostd: ``python -m casemate.hostd.entry``. It decides what is not imported, before anything is.

asyncio imports :mod:`ssl` where there is one, and does without where there is none. hostd speaks to no network, and
OpenSSL's tables of errors and ciphers would take 1.1 MiB of it for as long as it runs (decision 0162).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the daemon in a process that has imported nothing yet; the exit status."""
    # The language reference, 5.3.1: None in sys.modules stands for a module that cannot be found.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    from casemate.hostd import daemon  # noqa: PLC0415 - only now

    return daemon.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
