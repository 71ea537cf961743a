"""Sharing of a worker's prefetch: idle agent types lend their shares to busy ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from warren.worker.agent_queue import Lane

INTERVAL: Final = 0.25  # seconds between two adjustments
GROWTH: Final = 4  # a fully used share grows by this factor at each adjustment, if there is room


def share_out(wanted: Mapping[str, int], budget: int) -> dict[str, int]:
    """Max-min fair shares of a budget (Bertsekas and Gallager, *Data Networks*, 6.5.2).

    No share is larger than wanted. Shares that are smaller than wanted are equal. The budget must allow 1 for
    each.
    """
    shares: dict[str, int] = {}
    left = budget
    by_need = sorted(wanted, key=lambda name: wanted[name])
    for position, name in enumerate(by_need):
        even = left // (len(by_need) - position)
        shares[name] = max(1, min(wanted[name], even))
        left -= shares[name]
    return shares


class Sharing:
    """Moves shares between the lanes of one worker. Together they never hold more than the prefetch."""

    def __init__(self, lanes: Mapping[str, Lane], prefetch: int) -> None:
        self._lanes, self._prefetch = lanes, prefetch

    async def run(self) -> None:
        """Adjust the shares every INTERVAL seconds until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.adjust()

    def adjust(self) -> None:
        """Shrink the shares that are not used up, and give free places to lanes that use all of theirs."""
        wanted = {name: _wanted(lane) for name, lane in self._lanes.items()}
        if not any(wanted[name] > lane.share for name, lane in self._lanes.items()):
            return  # every lane has enough, so none has to lend
        shares = share_out(wanted, self._prefetch)
        for name, lane in self._lanes.items():
            if shares[name] < lane.share:
                lane.resize(shares[name])
        # A place that was just taken away is free only when its task has ended.
        free = self._prefetch - sum(max(lane.share, lane.bound) for lane in self._lanes.values())
        for name, lane in self._lanes.items():
            if shares[name] > lane.share and free > 0:
                more = min(shares[name] - lane.share, free)
                free -= more
                lane.resize(lane.share + more)


def _wanted(lane: Lane) -> int:
    """The share that a lane could use: a multiple of a full share, otherwise its recent use.

    A share grows step by step, from 1 to 200 in a second or two. So a single long task takes a few places too
    many from other lanes, not a hundred.
    """
    used = lane.consumer.take_peak()
    if lane.is_open and used >= lane.share:
        return min(lane.ceiling, GROWTH * lane.share)
    return max(1, min(lane.share, used))
