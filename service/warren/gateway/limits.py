"""How often a key, or an address without one, may come: a token bucket for each, in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SWEEP: Final = 1000  # buckets from which those that are full again are thrown away


class Buckets:
    """Each name may take `burst` at once, and `rate` a second for long.

    They are of one process: a gateway more is a bucket more.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was
        self._sweep_at = SWEEP

    def wait(self, name: str) -> float:
        """Zero, or the seconds until there is one to take."""
        return max(0.0, (1 - self._left(name, self._clock())) / self.rate)

    def take(self, name: str) -> float:
        """Take one. Zero, or the seconds until there is one."""
        now = self._clock()
        left = self._left(name, now)
        if left < 1:
            return (1 - left) / self.rate
        self._buckets[name] = (left - 1, now)
        if len(self._buckets) > self._sweep_at:
            self._throw_away(now)
        return 0.0

    def _left(self, name: str, now: float) -> float:
        left, since = self._buckets.get(name, (float(self.burst), now))
        return min(self.burst, left + (now - since) * self.rate)

    def _throw_away(self, now: float) -> None:
        self._buckets = {
            name: kept for name, kept in self._buckets.items() if self._left(name, now) < self.burst
        }
        self._sweep_at = max(SWEEP, 2 * len(self._buckets))
