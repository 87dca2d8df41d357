"""Version comparisons: how many in a second, and the time for one of 10 MB, for every scheme.

python3 bench/trust_versions.py [--megabytes 10]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from casemate.trust.version.order import SCHEMES, compare

PAIRS = [
    ("1.2.3-4", "1.2.3-5"),
    ("2:1.20.11-1+deb11u5", "2:1.20.11-1+deb11u6"),
    ("3.0.7-25.el9", "3.0.7-24.el9"),
    ("1.0rc1", "1.0"),
]
SHAPES = ("1.", "a1", "1-", "~")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--megabytes", type=int, default=10)
    size = options.parse_args().megabytes * 1_000_000
    for scheme in SCHEMES:
        start = time.perf_counter()
        for _ in range(2000):
            for left, right in PAIRS:
                compare(scheme, left, right)
        rate = 2000 * len(PAIRS) / (time.perf_counter() - start)
        worst_s = 0.0
        for shape in SHAPES:
            text = shape * (size // len(shape))
            start = time.perf_counter()
            compare(scheme, text, text + "1")
            worst_s = max(worst_s, time.perf_counter() - start)
        worst = f"worst of two versions of {size // 1_000_000} MB: {worst_s:.1f} s"
        print(f"{scheme:9} {rate:>9,.0f} comparisons/s   {worst}")


if __name__ == "__main__":
    main()
