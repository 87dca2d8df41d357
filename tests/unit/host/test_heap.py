"""malloc(3) gives back what is free below what is still in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[3] / "src"
#: Blocks larger than Python's own allocator takes, smaller than what malloc maps by itself; the last one stays.
_CODE = """
import re
from casemate.host import heap
heap.keep_one()
def held_kib():
    return int(re.search(r"Anonymous: +([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
blocks = [b"x" * (64 << 10) for _ in range(512)]
last = b"y" * (64 << 10)
del blocks
before = held_kib()
heap.give_back()
print(before - held_kib())
"""


def test_what_lies_below_a_block_in_use_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], env={"PYTHONPATH": str(_SOURCE)}, capture_output=True,
                          text=True, check=True, timeout=60)  # fmt: skip
    # 32 MiB were free; pages at the edges stay.
    assert int(done.stdout) > 24 << 10
