"""Lane: one agent type in a worker, with its consumer, circuit breaker and slots."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from warren.agents.app import AgentSpec
from warren.bus.consumer import Consumer
from warren.worker.breaker import State, Valve

Hold = Literal["store", "drain", "pause"]
"""Reasons for a lane to consume nothing, in every state of its valve."""


class Slots:
    """A semaphore whose size can be changed while it is used. A smaller size takes no place away.

    First come, first served.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, size: int) -> None:
        """Change the number of places."""
        self._size = size
        self._let_in()

    async def acquire(self) -> None:
        """Take a place, or wait for one."""
        if self.used < self._size and not self._waiting:
            self.used += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # the place was given at the moment of the cancellation
            raise

    def release(self) -> None:
        """Give a place back."""
        self.used -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.used < self._size:
            place = self._waiting.popleft()
            if not place.done():
                self.used += 1
                place.set_result(None)


@dataclass(slots=True)
class Lane:
    """One agent type in a worker: its agent, its consumer, its valve and its slots.

    `share` is its part of the worker's prefetch: the number of tasks that run at once. `ceiling` is the
    largest share.
    """

    spec: AgentSpec
    share: int
    ceiling: int
    consumer: Consumer
    valve: Valve
    slots: Slots
    state: State = "closed"
    holds: set[Hold] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether it may consume its full share."""
        return not self.holds and self.state == "closed"

    @property
    def bound(self) -> int:
        """The most tasks that it may have until a change of its share has taken effect."""
        return max(self.consumer.bound, self.slots.used)

    def resize(self, share: int) -> None:
        """Change the share."""
        self.share = share
        self.slots.resize(share)
        self.feed()

    def follow(self, state: State) -> None:
        """Adjust to a new state of the valve."""
        self.state = state
        self.feed()

    def hold(self, reason: Hold) -> None:
        """Add a reason to consume nothing."""
        if reason not in self.holds:
            self.holds.add(reason)
            self.feed()

    def resume(self, reason: Hold) -> None:
        """Remove a reason to consume nothing."""
        if reason in self.holds:
            self.holds.discard(reason)
            self.feed()

    def feed(self) -> None:
        """Consume as the valve allows: the full share, nothing, or one probe."""
        if self.holds or self.state == "open":
            self.consumer.want(0)
        elif self.state == "closed":
            self.consumer.want(self.share)
        else:
            self.consumer.want(self.share, fresh=1)
