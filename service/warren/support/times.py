"""Times in seconds since the epoch, kept within what a calendar can show. Nothing here raises."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

# A day from the ends of the calendar, so that every time zone can show them.
EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 30, tzinfo=UTC)
_FIRST: Final = EARLIEST.timestamp()
_LAST: Final = LATEST.timestamp()


def bounded(seconds: object) -> float:
    """The time, limited to the calendar's range. A value that is no time becomes the epoch."""
    try:
        at = float(seconds)  # type: ignore[arg-type]
    except OverflowError:
        return _LAST
    except (TypeError, ValueError):
        return 0.0
    return 0.0 if at != at else min(max(at, _FIRST), _LAST)  # noqa: PLR0124 - only NaN differs from itself


def moment(seconds: object) -> datetime:
    """The bounded time as a datetime in UTC."""
    return datetime.fromtimestamp(bounded(seconds), UTC)


def moment_or_none(seconds: object) -> datetime | None:
    """Like `moment`, but None stays None."""
    return None if seconds is None else moment(seconds)
