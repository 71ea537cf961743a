"""Rate limits: a token bucket in memory for each key, or for each address without a valid key."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

REMEMBERED: Final = 10_000  # names; of more, those that came longest ago are forgotten


class Buckets:
    """Each name may take `burst` at once, and `rate` a second for long.

    Buckets belong to one process: a second gateway has its own.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, when

    def take(self, name: str) -> float:
        """Take one. Zero, or the seconds until there is one."""
        left = self._left(name)
        if left < 1:
            self._buckets.move_to_end(name)
            return (1 - left) / self.rate
        self._keep(name, left - 1)
        return 0.0

    def give_back(self, name: str) -> None:
        """Return the last token: it was not used."""
        self._keep(name, min(self.burst, self._left(name) + 1))

    def _left(self, name: str) -> float:
        now = self._clock()
        left, since = self._buckets.get(name, (float(self.burst), now))
        return min(self.burst, left + (now - since) * self.rate)

    def _keep(self, name: str, left: float) -> None:
        self._buckets[name] = (left, self._clock())
        self._buckets.move_to_end(name)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
