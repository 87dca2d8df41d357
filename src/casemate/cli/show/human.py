"""Ages and sizes as Docker and Podman print them."""

from __future__ import annotations

#: Days from 0000-03-01 to 1970-01-01 in the proleptic Gregorian calendar.
_EPOCH_DAYS = 719_468


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time (``2026-11-22T10:30:17.123Z``, or with an offset); None if it is none."""
    try:
        year, month, day = int(text[0:4]), int(text[5:7]), int(text[8:10])
        hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
        rest = text[19:]
        fraction = 0.0
        if rest[:1] == ".":
            digits = len(rest[1:]) - len(rest[1:].lstrip("0123456789"))
            fraction = float("0." + rest[1 : 1 + digits])
            rest = rest[1 + digits :]
        offset = 0
        if rest not in ("Z", "z"):
            sign = {"+": 1, "-": -1}[rest[0]]
            offset = sign * (int(rest[1:3]) * 3600 + int(rest[4:6]) * 60)
    except (ValueError, KeyError, IndexError):
        return None
    if (
        text[4] + text[7] + text[13] + text[16] != "--::"
        or text[10] not in "Tt "
        or not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60)
    ):
        return None
    return float(_days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset) + fraction


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01; the year begins in March, so that the leap day is its last."""
    year -= month <= 2
    month = (month + 9) % 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1 - _EPOCH_DAYS


def duration(seconds: float) -> str:
    """``Less than a second``, ``3 minutes``, ``About an hour``, ``2 weeks``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for below, unit, length in (
        (48, "hours", 1), (24 * 14, "days", 24), (24 * 60, "weeks", 168), (24 * 730, "months", 720)
    ):  # fmt: skip
        if hours < below:
            return f"{hours // length} {unit}"
    return f"{int(seconds / 3600) // 8760} years"


def ago(text: str, now: float) -> str:
    """The age of the time *text* at *now* (seconds since 1970), with ``ago``; empty for no time."""
    at = parse_time(text)
    return "" if at is None else f"{duration(now - at)} ago"


def _figure(number: float, digits: int) -> str:
    text = f"{number:.{digits}g}"
    return f"{number:.0f}" if "e" in text else text


def _scaled(size: float, base: float, units: tuple[str, ...], digits: int) -> str:
    index = 0
    while size >= base and index < len(units) - 1:
        size /= base
        index += 1
    return _figure(size, digits) + units[index]


def size(count: float, digits: int = 3) -> str:
    """Decimal: ``77.8MB``, as images and network figures are shown; ``N/A`` for -1 (not known)."""
    return "N/A" if count < 0 else _scaled(count, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def memory(count: float) -> str:
    """Binary: ``1.934MiB``, as memory is shown."""
    return _scaled(count, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def short_id(text: str) -> str:
    """The first twelve digits of an id or digest."""
    return text.rpartition(":")[2][:12]


def familiar(name: str) -> str:
    """An image's name as people type it: without docker.io and library."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def short_item(item: str) -> str:
    """Twelve digits of a digest; anything else as it is."""
    algorithm, colon, digits = item.partition(":")
    return digits[:12] if colon and algorithm.startswith("sha") else item
