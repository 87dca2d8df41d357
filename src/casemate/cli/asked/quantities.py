"""Sizes, cpus, durations, times, signals and numbers as people type them."""

from __future__ import annotations

from casemate.cli.fail import bad_value

_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_MAX_BYTES = 1 << 60
_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def is_whole(text: str) -> bool:
    return 0 < len(text) <= 18 and text.isascii() and text.isdigit()


def _decimal(text: str) -> float | None:
    whole, dot, part = text.partition(".")
    if (whole + part).isascii() and (whole + part).isdigit() and len(text) <= 24 and (not dot or part):
        return float(text)
    return None


def size(flag: str, text: str) -> int:
    """Bytes of ``512m``, ``1.5g``, ``64kb``, ``1GiB``; powers of 1024, as Docker reads them."""
    lowered = text.strip().lower()
    number = lowered.rstrip("bikmgtp")
    unit = lowered[len(number) :]
    if (unit.endswith("ib") and len(unit) == 3) or (unit.endswith("b") and len(unit) == 2):
        unit = unit[0]
    amount = _decimal(number)
    if amount is None or unit not in _UNITS:
        raise bad_value(flag, text, "SIZE: a number and b, k, m, g or t, for example 512m")
    found = int(amount * (1 << _UNITS[unit]))
    if found > _MAX_BYTES:
        raise bad_value(flag, text, f"SIZE of at most {_MAX_BYTES} bytes")
    return found


def size_or_unlimited(flag: str, text: str) -> int:
    return -1 if text.strip() == "-1" else size(flag, text)


def cpu_millis(flag: str, text: str) -> int:
    """Thousandths of a cpu of ``1.5``."""
    amount = _decimal(text if not text.startswith(".") else f"0{text}")
    if amount is None or amount > 100_000:
        raise bad_value(flag, text, "CPUS: a decimal number, for example 1.5")
    return round(amount * 1000)


def whole(flag: str, text: str, least: int, most: int) -> int:
    """A whole number within its range."""
    digits = text[1:] if text.startswith("-") else text
    if not is_whole(digits) or not least <= int(text) <= most:
        raise bad_value(flag, text, f"N: a whole number from {least} to {most}")
    return int(text)


def seconds(flag: str, text: str) -> float:
    """Seconds of ``90``, ``1m30s``, ``1.5h``."""
    amount = _decimal(text)
    if amount is not None:
        return amount
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = next((name for name in ("ns", "us", "µs", "ms", "s", "m", "h", "d") if rest.startswith(name)), None)
        amount = _decimal(number)
        if amount is None or unit is None:
            raise bad_value(flag, text, "DURATION, for example 90, 90s or 1h30m")
        total += amount * _DURATION_UNITS[unit]
        rest = rest[len(unit) :]
    if not text:
        raise bad_value(flag, text, "DURATION, for example 90, 90s or 1h30m")
    return total


def moment(flag: str, text: str, now: float) -> str:
    """RFC 3339 in UTC of a time (``2026-11-22T10:30:00Z``, ``2026-11-22``), seconds since 1970, or an age (``42m``).

    A time without offset is UTC: what the daemon prints is.
    """
    from casemate.cli.show.human import parse_time

    if "-" in text or "T" in text:
        full = text if "T" in text else f"{text}T00:00:00"
        at = parse_time(full)
        if at is None:
            at = parse_time(f"{full}Z")
        if at is None:
            at = parse_time(f"{full}:00Z")
    else:
        amount = _decimal(text)
        at = amount if amount is not None else now - seconds(flag, text)
    if at is None or not 0 <= at < 253_402_300_800:
        raise bad_value(flag, text, "TIME, for example 2026-11-22T10:30:00Z, 1795343400 or 42m (ago)")
    return rfc3339(at)


def rfc3339(at: float) -> str:
    """``2026-11-22T10:30:17.123456Z`` of seconds since 1970."""
    import time

    broken = time.gmtime(int(at))
    micros = min(999_999, int((at - int(at)) * 1_000_000))
    return time.strftime("%Y-%m-%dT%H:%M:%S", broken) + f".{micros:06d}Z"


def signal(flag: str, text: str) -> str:
    """A signal's name or number in the form that the API takes; what the name means is the daemon's to say."""
    name = text.strip().upper()
    if is_whole(name) and 1 <= int(name) <= 64:
        return name
    word = name.removeprefix("SIG").replace("+", "").replace("-", "")
    if not (word.isascii() and word.isalnum() and word[0].isalpha()) or len(name) > 32:
        raise bad_value(flag, text, "SIGNAL: a name (TERM, SIGTERM) or a number from 1 to 64")
    return name
