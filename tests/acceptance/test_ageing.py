"""Nobody starves: a task that waits rises class by class."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import pytest

from tests.rig import Rig, eventually
from warren import Client, Context, Warren
from warren.errors import QueueFull

STEP: Final = 0.4  # seconds; far over what the urgent tasks that wait in front take together
FLOOD: Final = 30  # urgent tasks that wait at any time


def ageing(rig: Rig) -> dict[str, Any]:
    """Steps that a test can wait for."""
    return {"ageing_step": STEP, "queue_capacity": FLOOD}


class Flood:
    """An agent that is always busy with urgent tasks, and keeps what ran in order."""

    def __init__(self) -> None:
        self.app, self.ran = Warren(), list[str]()
        self.low_ran = asyncio.Event()

        @self.app.agent("busy", concurrency=1)
        async def busy(name: str, ctx: Context) -> None:
            self.ran.append(name)
            if name == "low":
                self.low_ran.set()
            await asyncio.sleep(0.005)

    async def go_on(self, client: Client) -> None:
        """Keep the queue full of urgent tasks until the low one has run."""
        while not self.low_ran.is_set():
            with suppress(QueueFull):
                await client.submit("busy", "urgent", priority="urgent")
                continue
            await asyncio.sleep(0.01)


async def test_a_low_task_runs_although_urgent_ones_never_end(rig: Rig) -> None:
    if rig.profile == "classic":
        pytest.skip("classic queues expire at the head only: behind an endless flood nothing rises")
    flood = Flood()
    async with (
        rig.listening("task.busy.promoted") as promoted,
        rig.worker(flood.app, **ageing(rig)),
        rig.client(**ageing(rig)) as client,
    ):
        flooding = [asyncio.create_task(flood.go_on(client)) for _ in range(4)]
        await eventually(lambda: len(flood.ran) > FLOOD, "the flood has begun")
        task = None
        while task is None:
            with suppress(QueueFull):
                task = await client.submit("busy", "low", priority="low")
        await eventually(flood.low_ran.is_set, "the low task ran")
        await asyncio.gather(*flooding)
        own = [event for event in promoted if event.details["task_id"] == str(task.task_id)]
        assert [event.details["priority"] for event in own] == [5, 7, 9][: len(own)]
        assert 1 <= len(own) <= 3
    assert flood.ran.count("low") == 1


async def test_a_promoted_task_goes_before_those_of_the_class_above_that_came_later(rig: Rig) -> None:
    app, gate, ran = Warren(), asyncio.Event(), list[str]()

    @app.agent("busy", concurrency=1)
    async def busy(name: str) -> None:
        ran.append(name)
        await gate.wait()

    limits: dict[str, Any] = {"ageing_step": 1.0}
    async with (
        rig.listening("task.busy.promoted") as promoted,
        rig.worker(app, **limits) as worker,
        rig.client(**limits) as client,
    ):
        await client.submit("busy", "running")
        await eventually(lambda: ran, "the agent is busy")
        await client.submit("busy", "low", priority="low")
        await eventually(lambda: promoted, "the low task rises")
        await client.submit("busy", "medium", priority="medium")
        gate.set()
        await eventually(lambda: worker.totals.succeeded == 3, "all ran")
        await eventually(lambda: worker.totals.promoted == len(promoted), "each that rose is counted")
    assert ran == ["running", "low", "medium"]
