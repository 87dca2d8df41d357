"""Hours in which a rule is in force, in UTC. The clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass

MINUTES_A_DAY = 1440
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = MINUTES_A_DAY * 7


@dataclass(frozen=True, slots=True)
class Window:
    """*days* (0 is Monday) from minute *first* up to, not with, minute *end*; past midnight where *end* <= *first*."""

    days: frozenset[int]
    first: int
    end: int

    def holds(self, minute_of_week: int) -> bool:
        """0 is Monday, 00:00 UTC."""
        return any((minute_of_week - start) % _WEEK < self._length for start in self._starts())

    def borders(self) -> list[int]:
        """Minutes of the week at which this begins or ends."""
        return [at % _WEEK for start in self._starts() for at in (start, start + self._length)]

    @property
    def _length(self) -> int:
        return (self.end - self.first - 1) % MINUTES_A_DAY + 1

    def _starts(self) -> list[int]:
        return [day * MINUTES_A_DAY + self.first for day in sorted(self.days)]


def minute_of_week(unix_s: float) -> int:
    """Of the moment *unix_s* (seconds since 1970-01-01, a Thursday)."""
    return int(unix_s // 60 + 3 * MINUTES_A_DAY) % _WEEK


def in_force(windows: tuple[Window, ...], minute: int) -> bool:
    return not windows or any(window.holds(minute) for window in windows)


def minutes_to_next_border(windows: list[Window], minute: int) -> int | None:
    """Until some window begins or ends, at least 1; None where there are none. When to compile again."""
    waits = [(border - minute - 1) % _WEEK + 1 for window in windows for border in window.borders()]
    return min(waits, default=None)
