"""Cron expressions and their ticks. Times are seconds since the epoch, and fields are read in UTC.

Ticks fall on whole seconds, and every machine computes the same ones.
"""

from __future__ import annotations

import math
import re
from typing import Final

from croniter import CroniterBadDateError, CroniterError, croniter

from warren.errors import ConfigurationError

EXAMPLE: Final = "*/5 * * * *"
LENGTH: Final = 255  # characters, as wide as the store's column
# Every check uses this moment, so that the verdict on an expression does not depend on the date.
REFERENCE: Final = 946_684_800.0  # 2000-01-01
# croniter picks random values for `R` and hashes for `H`: two machines would compute different ticks.
_LOTS: Final = re.compile(r"(?:^|[\s,])[hr]")


def check(expression: str) -> None:
    """Raise ConfigurationError, with an example, unless this is an expression that has ticks."""
    next_after(expression, REFERENCE)
    last_until(expression, REFERENCE)


def next_after(expression: str, at: float) -> float:
    """The first tick later than `at`. Raises ConfigurationError."""
    return _found(expression, math.floor(at), back=False)


def last_until(expression: str, at: float) -> float:
    """The last tick that is not later than `at`. Raises ConfigurationError."""
    return _found(expression, math.floor(at) + 1, back=True)


def _found(expression: str, start: int, *, back: bool) -> float:
    """The nearest tick before or after a whole second, that second itself left out."""
    text = expression.strip()
    _check_form(text)
    try:
        ticks = croniter(text, float(start))
        return float(ticks.get_prev(float) if back else ticks.get_next(float))
    except CroniterBadDateError as error:
        raise _wrong(text, "it names a time that never comes") from error
    except CroniterError as error:
        raise _wrong(text, str(error)) from error


def _check_form(text: str) -> None:
    if len(text) > LENGTH:
        raise _wrong(f"{text[:40]}…", f"it is longer than {LENGTH} characters")
    if not text.startswith("@") and len(text.split()) not in {5, 6}:
        raise _wrong(text, "it must have five fields, or a sixth at the end for seconds")
    if _LOTS.search(text.lower()):
        raise _wrong(text, "H and R, times drawn by lot, would differ from worker to worker")


def _wrong(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text!r} is no cron expression: {why}. Its fields are minute, hour, day of month, month and day of "
        f"week, in UTC; {EXAMPLE!r} is every five minutes, '0 9 * * mon-fri' 9:00 on weekdays."
    )
