"""The settings of this host: the file, then the environment over it (:mod:`casemate.spec.settings`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from casemate.host.durable import read_bounded
from casemate.spec.settings import SettingInvalid, Settings, settings_from

DEFAULT_FILE = Path("/etc/casemate/casemate.toml")
#: A file of every setting is below 8 KiB; grants may be long.
_MAX_BYTES = 1 << 20


def read_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from *path* (default: ``CASEMATE_SETTINGS``, else :data:`DEFAULT_FILE`) and *environment*.

    A default file that is not there is an empty one; a file that was named must be there. Raises
    :class:`SettingInvalid` with the file and, where the parser knows it, the line.
    """
    environment = os.environ if environment is None else environment
    named = path or (Path(environment["CASEMATE_SETTINGS"]) if environment.get("CASEMATE_SETTINGS") else None)
    place = named or DEFAULT_FILE
    try:
        data = read_bounded(place, _MAX_BYTES)
    except FileNotFoundError as error:
        if named is None:
            return settings_from({}, environment)
        raise SettingInvalid(f"{place} is not there", path=str(place)) from error
    except OSError as error:
        raise SettingInvalid(f"{place} cannot be read: {error.strerror}", path=str(place)) from error
    return parse_settings(data, str(place), environment)


def parse_settings(data: bytes, name: str, environment: Mapping[str, str]) -> Settings:
    """Settings from the TOML text *data*; *name* stands in errors."""
    import tomllib  # noqa: PLC0415 - 3 ms that a client without a file need not pay

    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SettingInvalid(f"{name}: byte {error.start} is not UTF-8", path=name) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingInvalid(f"{name}: {error or 'nested too deeply'}", path=name) from error
    try:
        return settings_from(document, environment)
    except SettingInvalid as error:
        line = _line_of(data, error.detail)
        if line is None:
            raise
        raise SettingInvalid(f"{name}, line {line}: {error.detail}", path=name, line=line) from error


def _line_of(data: bytes, detail: str) -> int | None:
    """The line that sets the key which *detail* names, for the reader's eye; None when it is not in the file."""
    words = [word.strip("'\":,") for word in detail.split()]
    for word in words:
        section, dot, key = word.partition(".")
        if not (dot and key):
            continue
        inside = False
        for number, raw in enumerate(data.decode("utf-8").splitlines(), 1):
            text = raw.strip()
            if text.startswith("["):
                inside = text.strip("[] \t") == section
            elif inside and text.partition("=")[0].strip().strip("\"'") == key:
                return number
    return None
