"""The variables of the environment that say where the daemon is."""

from __future__ import annotations

import posix

DEFAULT_RUN = "/run/casemate"


def environment(name: str) -> str | None:
    """A variable of the environment; ``os.environ`` would cost a decoded copy of all of it."""
    found = posix.environ.get(name.encode())
    return None if found is None else found.decode("utf-8", "surrogateescape")


def default_host() -> str:
    """CASEMATE_HOST; else the socket in paths.run, which tests and second instances set by the environment."""
    return environment("CASEMATE_HOST") or f"unix://{environment('CASEMATE_PATHS_RUN') or DEFAULT_RUN}/api.sock"
