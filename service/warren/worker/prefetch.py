"""The prefetch of a worker goes where the work is: idle agent types lend theirs to busy ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from warren.worker.agent_queue import Lane

INTERVAL: Final = 0.25  # seconds between two looks at who has too little
GROWTH: Final = 4  # a share that is used up grows by this factor at a look, where there is room


def share_out(wanted: Mapping[str, int], budget: int) -> dict[str, int]:
    """Shares out of a budget: nobody gets more than wanted, and whoever gets less gets as much as any other.

    (Max-min fairness; Bertsekas and Gallager, *Data Networks*, 6.5.2.) The budget must allow 1 for each.
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
        """Look and move, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.adjust()

    def adjust(self) -> None:
        """Take from whoever has more than it uses, and give what is free to whoever uses all it has."""
        wanted = {name: _wanted(lane) for name, lane in self._lanes.items()}
        if not any(wanted[name] > lane.share for name, lane in self._lanes.items()):
            return  # nobody has too little, so nobody has to lend
        shares = share_out(wanted, self._prefetch)
        for name, lane in self._lanes.items():
            if shares[name] < lane.share:
                lane.resize(shares[name])
        # What was taken away just now is free only when the tasks that it let in have ended.
        free = self._prefetch - sum(max(lane.share, lane.bound) for lane in self._lanes.values())
        for name, lane in self._lanes.items():
            if shares[name] > lane.share and free > 0:
                more = min(shares[name] - lane.share, free)
                free -= more
                lane.resize(lane.share + more)


def _wanted(lane: Lane) -> int:
    """What a lane could use: a multiple of its share once it is full, otherwise what it used lately.

    Growing step by step, it gets from 1 to 200 in a second or two, and a single long task takes a few places
    too many from the others, not a hundred.
    """
    used = lane.consumer.take_peak()
    if lane.is_open and used >= lane.share:
        return min(lane.ceiling, GROWTH * lane.share)
    return max(1, min(lane.share, used))
