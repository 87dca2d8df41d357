"""100 starts, 8 at a time: containers started in a second, Casemate against Docker.

sudo make start && sudo /opt/casemate/venv/bin/python bench/starts.py [count]
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from measure import CASEMATE, IMAGE, busybox_root, docker, import_ours, machine, run, scratch, seconds


def storm(argv: list[str], count: int) -> float:
    """Starts per second of *count* runs of *argv*, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        return count / seconds(lambda: list(pool.map(lambda _: run(argv), range(count))))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with scratch() as folder:
        archive = busybox_root(folder)
        import_ours(archive)
        (folder / "docker").mkdir()
        with docker(folder / "docker", archive) as dock:
            ours = [CASEMATE, "run", "--rm", IMAGE, "true"]
            theirs = [*dock, "run", "--rm", "bench:1", "true"]
            storm(ours, 8)
            storm(theirs, 8)
            # Each twice, in turn; the better of each, so that one hiccup decides nothing.
            rates = {"casemate": 0.0, "docker": 0.0}
            for _ in range(2):
                rates["casemate"] = max(rates["casemate"], storm(ours, count))
                rates["docker"] = max(rates["docker"], storm(theirs, count))
    print(machine())
    print(
        f"{count} starts (run --rm IMAGE true), 8 at a time: casemate {rates['casemate']:.1f}/s, "
        f"docker {rates['docker']:.1f}/s; ratio {rates['casemate'] / rates['docker']:.2f}   (budget at least 3)"
    )


if __name__ == "__main__":
    main()
