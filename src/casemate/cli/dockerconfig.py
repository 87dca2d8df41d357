"""Writing Docker's config.json (``auths`` only, the rest kept as it is); reading it is casemate.image.credentials'."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

from casemate.cli.errors import FileUnusable
from casemate.cli.variables import environment

#: The key under which Docker keeps docker.io.
_HUB = "https://index.docker.io/v1/"
MAX_CONFIG_BYTES = 4 << 20


def _place() -> Path:
    folder = environment("DOCKER_CONFIG")
    return (Path(folder) if folder else Path(environment("HOME") or "/root") / ".docker") / "config.json"


def _key(registry: str) -> str:
    return _HUB if registry in ("docker.io", "index.docker.io", "registry-1.docker.io") else registry


def _read(place: Path) -> dict[str, object]:
    try:
        data = place.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileUnusable(f"{place} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(data[: MAX_CONFIG_BYTES + 1]) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise FileUnusable(f"{place} is not JSON: {error}", remedy="Correct or remove the file.") from error
    if not isinstance(found, dict) or len(data) > MAX_CONFIG_BYTES:
        raise FileUnusable(f"{place} is no JSON object of at most {MAX_CONFIG_BYTES} bytes")
    return found


def _write(place: Path, document: dict[str, object]) -> None:
    """In place only when whole, readable by its owner alone from its first byte on."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = place.resolve()
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(document, file, indent="\t")
            file.write("\n")
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def keep(registry: str, name: str, password: str) -> str:
    """Store the credentials for *registry*; where they are now."""
    place = _place()
    document = _read(place)
    if document.get("credsStore") or _key(registry) in _object(document.get("credHelpers")):
        raise FileUnusable(
            f"{place} names a credential helper for {registry}; only the helper's own tool stores there",
            remedy="Use `docker login`; casemate reads what it stored.",
        )
    auths = _object(document.get("auths"))
    auths[_key(registry)] = {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}
    _write(place, document | {"auths": auths})
    return str(place)


def forget(registry: str) -> str | None:
    """Remove the credentials for *registry*; where they were, or None."""
    place = _place()
    document = _read(place)
    auths = _object(document.get("auths"))
    if auths.pop(_key(registry), None) is None:
        return None
    _write(place, document | {"auths": auths})
    return str(place)


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
