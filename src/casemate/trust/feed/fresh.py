"""Whether feeds are young enough to be believed. The day is an argument: no clock is read here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from casemate.trust.feed.model import FeedInvalid, FeedStale, Source

#: Makers and we may sit in different time zones; more than this, and one of the clocks is wrong.
_AHEAD_DAYS = 1


def as_date(text: str, what: str) -> date:
    """*text* (``YYYY-MM-DD``) as a date."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise FeedInvalid(f"{what}: {text[:40]!r} is no date of the form YYYY-MM-DD") from error


def age_days(source: Source, today: date) -> int:
    """How old *source* is; raises :class:`FeedStale` when it comes from the future (a clock is set wrong)."""
    made = as_date(source.date, f"feed {source.name}")
    if (made - today).days > _AHEAD_DAYS:
        raise FeedStale(
            f"feed {source.name} is of {source.date}, and this host's clock says {today.isoformat()}",
            remedy="Set the clock: `timedatectl`; then import the feed anew.",
            feed=source.name,
        )
    return max((today - made).days, 0)


def check_fresh(sources: Iterable[Source], today: date, max_age_days: int) -> None:
    """Raise :class:`FeedStale` for the first source that is older than *max_age_days*."""
    for source in sources:
        age = age_days(source, today)
        if age > max_age_days:
            raise FeedStale(
                f"feed {source.name} is of {source.date}, {age} days old; {max_age_days} are allowed",
                feed=source.name, age_days=age, max_age_days=max_age_days,
            )  # fmt: skip
