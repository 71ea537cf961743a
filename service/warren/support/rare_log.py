"""What is said of a broker that stays away: at once, and then ever more rarely."""

from __future__ import annotations

from typing import Final

FIRST: Final = 60.0  # seconds until it is said again; twice as long each time
LONGEST: Final = 3600.0


class Rarely:
    """When to say the same thing again: the first time at once, then after one, two, four … minutes."""

    def __init__(self) -> None:
        self._not_before, self._pause = float("-inf"), FIRST

    def is_time(self, now: float) -> bool:
        """Whether to say it now; then it counts as said. `now` is in seconds, on any clock."""
        if now < self._not_before:
            return False
        self._not_before, self._pause = now + self._pause, min(self._pause * 2, LONGEST)
        return True
