"""What belongs to one agent type in a worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from warren.agents import AgentSpec
from warren.breaker import State, Valve
from warren.bus_consumer import Consumer


@dataclass(slots=True)
class Lane:
    """Everything of one agent type: its agent, its consumer, its valve and its slots.

    `share` is how many of its tasks run at once, out of the worker's prefetch.
    """

    spec: AgentSpec
    share: int
    consumer: Consumer
    valve: Valve
    slots: asyncio.Semaphore

    def feed(self, state: State) -> None:
        """Consume as the valve allows: the full share, nothing, or one probe."""
        match state:
            case "closed":
                self.consumer.want(self.share)
            case "open":
                self.consumer.want(0)
            case "half_open":
                self.consumer.want(self.share, fresh=1)
