"""Rate limit for repeated log messages such as "broker unavailable": after 1, 2, 4 … minutes."""

from __future__ import annotations

from typing import Final

FIRST: Final = 60.0  # seconds until the first repetition; doubled each time
LONGEST: Final = 3600.0


class Rarely:
    """Decides when to log the same message again: at once, then after one, two, four … minutes."""

    def __init__(self) -> None:
        self._not_before, self._pause = float("-inf"), FIRST

    def is_time(self, now: float) -> bool:
        """Whether to log the message now. True counts it as logged. `now` is in seconds, on any clock."""
        if now < self._not_before:
            return False
        self._not_before, self._pause = now + self._pause, min(self._pause * 2, LONGEST)
        return True
