"""Scheduler: makes tasks of due schedules. Every worker with a store runs one; the first fires a tick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import structlog

from warren.agents.app import AgentSpec
from warren.errors import StoreRefused
from warren.store.schedules import Schedules
from warren.support.loops import GrowingPause

log = structlog.get_logger(__name__)

ROUND: Final = 0.5  # seconds
LONGEST_PAUSE: Final = 60.0  # seconds between two rounds, at most, while the store refuses them


class Scheduler:
    """Fires all schedules of a store, also those of agents in other workers.

    Firing writes a task to the store, so it needs no agent in this worker.
    """

    def __init__(self, schedules: Schedules, agents: Iterable[AgentSpec]) -> None:
        self._schedules = schedules
        self._every = {agent.agent_type: agent.every for agent in agents}

    async def run(self) -> None:
        """Make the agents' schedules match their code, then fire due schedules until cancelled."""
        trouble, adopted = GrowingPause(ROUND, LONGEST_PAUSE), False
        while True:
            try:
                if not adopted:
                    await self._adopt()
                    adopted = True
                await self._fire()
            except StoreRefused as error:
                pause = trouble.failed()
                log.error("scheduler.failed", error=str(error), again_in_s=pause)
                await asyncio.sleep(pause)
                continue
            trouble.worked()
            # Rounds begin at half seconds of the clock, because ticks fall on full seconds. A pause is never
            # longer, so the next round notices a clock that jumped.
            await asyncio.sleep(ROUND - time.time() % ROUND)

    async def _adopt(self) -> None:
        await self._schedules.adopt(
            self._every, {name: every for name, every in self._every.items() if every is not None}
        )

    async def _fire(self) -> None:
        while fired := await self._schedules.fire():
            for one in fired:
                log.debug("schedule.fired", schedule=one.name, task_id=str(one.task_id))


def warn_of_the_unscheduled(agents: Iterable[AgentSpec]) -> None:
    """Warn of recurring agents in a worker without a store: their schedules do not fire."""
    for agent in agents:
        if agent.every is not None:
            log.warning(
                "schedule.off",
                agent_type=agent.agent_type,
                every=agent.every,
                hint="recurring tasks need a store, and WARREN_STORE_URL is `none`: this one will not fire",
            )
