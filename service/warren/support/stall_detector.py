"""Stall detector: notices that this process was stopped, suspended, or had a blocked event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

INTERVAL: Final = 0.5  # seconds between two ticks
# Seconds after a stall in which deliveries may be old. They were in the buffers of this process and of the
# kernel while the broker gave their messages to other workers. A worker reads its buffers in far less time,
# or has noticed by then that its connection is gone.
AFTERMATH: Final = 30.0


def boot_time() -> float:
    """Seconds since the machine was booted, those of a suspend included.

    CLOCK_MONOTONIC stands still while Linux is suspended, CLOCK_BOOTTIME does not (clock_gettime(2)).
    """
    return time.clock_gettime(_CLOCK)


# macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC goes on while it sleeps.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Pulse:
    """The pulse of one process. It stood still when it did not tick for longer than `limit` seconds.

    Every query is a tick too, so the first query after a stall notices the stall.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = boot_time) -> None:
        self._limit, self._clock = limit, clock
        self._last = clock()
        self._stalls = 0
        self._suspicious_until = float("-inf")

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            self._tick()
            await asyncio.sleep(INTERVAL)

    @property
    def stalls(self) -> int:
        """The number of stalls so far."""
        self._tick()
        return self._stalls

    @property
    def is_suspicious(self) -> bool:
        """Whether a delivery that is read now may have arrived before a stall."""
        return self._tick() < self._suspicious_until

    def _tick(self) -> float:
        now = self._clock()
        stood_still, self._last = now - self._last, now
        if stood_still > self._limit:
            self._stalls += 1
            self._suspicious_until = now + AFTERMATH
            log.warning("worker.stalled", seconds=round(stood_still, 1))
        return now
