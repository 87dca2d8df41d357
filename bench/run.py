"""``run --rm IMAGE true`` with network: Casemate against Docker and Podman, in turn.

sudo make start && sudo /opt/casemate/venv/bin/python bench/run.py [rounds]
"""

from __future__ import annotations

import sys

from measure import (
    CASEMATE,
    IMAGE,
    alternate,
    busybox_root,
    docker,
    import_ours,
    machine,
    median,
    podman,
    report,
    run,
    scratch,
)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with scratch() as folder:
        archive = busybox_root(folder)
        import_ours(archive)
        (folder / "docker").mkdir()
        (folder / "podman").mkdir()
        with docker(folder / "docker", archive) as dock, podman(folder / "podman", archive) as pod:
            times = alternate(
                {
                    "casemate": lambda: run([CASEMATE, "run", "--rm", IMAGE, "true"]),
                    "docker": lambda: run([*dock, "run", "--rm", "bench:1", "true"]),
                    "podman": lambda: run([*pod, "run", "--rm", "bench:1", "true"]),
                },
                rounds,
            )
    print(machine())
    report(
        f"run --rm IMAGE true, median of {rounds}",
        median(times["casemate"]),
        {name: median(times[name]) for name in ("docker", "podman")},
        "s",
        "0.4 of docker",
    )


if __name__ == "__main__":
    main()
