"""Urgent tasks go first, and a worker holds no more than its prefetch, whatever happens to it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, get_args

import pytest

from tests.rig import Rig, eventually
from warren import Client, Context, Warren
from warren.client.client import make_task
from warren_schemas import AMQP_PRIORITY, Priority

EACH: Final = 1000  # tasks of each class
BY_URGENCY: Final = sorted(get_args(Priority), key=lambda priority: -AMQP_PRIORITY[priority])
IN_ORDER: Final = [priority for priority in BY_URGENCY for _ in range(EACH)]

# Asks every channel of the broker, 150 times, and prints the highest sum. (`list_queues` would not do: quorum
# queues tell their numbers every five seconds only.) Channels with a prefetch above 200 carry no tasks, but
# events and commands.
PEAK_OF_UNACKNOWLEDGED: Final = """
    lists:max([begin
        timer:sleep(25),
        lists:sum([N || [{messages_unacknowledged, N}, {prefetch_count, P}] <-
            rabbit_channel:info_all([messages_unacknowledged, prefetch_count]), P =< 200])
    end || _ <- lists:seq(1, 150)]).
"""


async def fill(rig: Rig, app: Warren, **settings: Any) -> None:
    """Let 4000 tasks, 1000 of each class in no order, wait for the agent `sorted`."""
    async with rig.worker(app, **settings):
        pass  # its queues are declared now
    tasks = [make_task("sorted", None, priority=priority) for priority in IN_ORDER]
    random.shuffle(tasks)
    async with rig.client(**settings) as client:
        submissions = await client.submit_many(tasks)
    assert [one.error for one in submissions] == [None] * len(tasks)


@pytest.mark.parametrize("prefetch", [1, 200])
async def test_waiting_tasks_start_strictly_by_class(rig: Rig, prefetch: int) -> None:
    settings: dict[str, Any] = {"prefetch": prefetch, "queue_capacity": 5000, "ageing_step": 600}
    app = Warren()
    started: list[str] = []
    ended: list[str] = []

    @app.agent("sorted")
    async def sorted_by_class(_payload: None, ctx: Context) -> None:
        started.append(ctx.task.priority)
        await asyncio.sleep(0)
        ended.append(ctx.task.priority)

    await fill(rig, app, **settings)
    async with rig.worker(app, **settings):
        await eventually(lambda: len(ended) == 4 * EACH, "every task has run")
    assert started == IN_ORDER
    for position, priority in enumerate(IN_ORDER):
        # Those that run at once may overtake each other, and nobody else.
        at_once = ended[max(0, position - prefetch + 1) : position + prefetch]
        assert priority in at_once


async def test_an_urgent_task_overtakes_all_that_wait(rig: Rig) -> None:
    app, gate = Warren(), asyncio.Event()
    started: list[str] = []

    @app.agent("busy", concurrency=1)
    async def busy(name: str) -> None:
        started.append(name)
        await gate.wait()

    async with rig.worker(app), rig.client() as client:
        await client.submit("busy", "running", priority="low")
        await eventually(lambda: started, "the first task runs")
        for priority in reversed(BY_URGENCY):
            await client.submit("busy", priority, priority=priority)
        gate.set()
        await eventually(lambda: len(started) == 5, "every task has run")
    assert started == ["running", "urgent", "high", "medium", "low"]


class Flow:
    """More than enough tasks of three agent types, one of which can be told to fail."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.app, self.failing = rig, Warren(), False
        self.runs = Counter[str]()
        self.running = self.most = 0
        for agent_type in ("steady", "quick", "flaky"):
            self._register(agent_type)

    def _register(self, agent_type: str) -> None:
        @self.app.agent(agent_type)
        async def agent(_payload: None) -> None:
            self.runs[agent_type] += 1
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(0.05)
            finally:
                self.running -= 1
            if agent_type == "flaky" and self.failing:
                raise ConnectionError("away")

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[asyncio.Task[int]]:
        """Tasks flow while this is entered; the task ends when enough of them have been watched."""
        async with self.rig.client() as client:
            measuring = asyncio.create_task(self._peak())
            pumping = asyncio.create_task(self._pump(client, measuring))
            yield measuring
            await pumping
        peak = measuring.result()
        print(f"{self.rig.profile}: {peak} unacknowledged, {self.most} running at most; {self.runs} runs")
        assert self.most <= 200
        assert 100 < peak <= 200  # the prefetch; and it was looked at while there was enough to do

    async def _peak(self) -> int:
        """The most that was unacknowledged at once, while more than 2000 tasks ran."""
        peak = 0
        while self.runs.total() <= 2000:
            told = await asyncio.to_thread(self.rig.broker.ctl, "eval", PEAK_OF_UNACKNOWLEDGED)
            peak = max(peak, int(told))
        return peak

    async def _pump(self, client: Client, until: asyncio.Task[int]) -> None:
        while not until.done():
            tasks = [make_task(agent_type, None) for agent_type in self.app.agents for _ in range(200)]
            await client.submit_many(tasks)


@pytest.mark.needs_node
async def test_a_worker_holds_no_more_than_its_prefetch(rig: Rig) -> None:
    flow = Flow(rig)
    async with rig.worker(flow.app, drain_timeout=0), flow.measured():
        pass


@pytest.mark.needs_node
async def test_nor_when_a_breaker_opens_and_closes(rig: Rig) -> None:
    flow = Flow(rig)
    async with (
        rig.worker(flow.app, drain_timeout=0, breaker_reset_timeout=0.2),
        rig.listening("health.breaker.flaky.*") as changes,
        flow.measured() as measuring,
    ):
        while not measuring.done():
            flow.failing = True
            await eventually(lambda: measuring.done() or _state(changes) == "open", "it opens")
            flow.failing = False
            await eventually(lambda: measuring.done() or _state(changes) == "closed", "it closes")
        assert _count(changes, "closed") >= 2


@pytest.mark.needs_node
async def test_nor_after_a_reconnect(rig: Rig) -> None:
    flow = Flow(rig)
    async with rig.worker(flow.app, drain_timeout=0) as worker, flow.measured() as measuring:
        await eventually(lambda: flow.runs.total() > 500, "tasks flow")
        await asyncio.to_thread(rig.broker.ctl, "close_all_connections", "for a test")
        await eventually(lambda: worker.totals.redelivered > 0, "what was lost comes back")
        assert not measuring.done()


@pytest.mark.needs_node
async def test_nor_does_it_run_more_when_others_are_delivered_after_a_reconnect(rig: Rig) -> None:
    app, gate = Warren(), asyncio.Event()
    runs, running, most = Counter[str](), 0, 0

    @app.agent("gated", concurrency=20)
    async def gated(name: str) -> None:
        nonlocal running, most
        runs[name] += 1
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with rig.worker(app) as worker, rig.client() as client:
        for number in range(20):
            await client.submit("gated", f"low-{number}", priority="low")
        await eventually(lambda: running == 20, "20 run")
        for number in range(20):
            await client.submit("gated", f"urgent-{number}", priority="urgent")
        await asyncio.to_thread(rig.broker.ctl, "close_all_connections", "for a test")
        await eventually(
            lambda: worker.totals.delivered == 40, "20 more are delivered; which, depends on the broker"
        )
        assert (running, most) == (20, 20)
        gate.set()
        await eventually(lambda: len(runs) == 40, "all have run")
    assert most == 20
    assert set(runs.values()) == {1}


def _state(changes: list[Any]) -> str | None:
    return changes[-1].state if changes else None


def _count(changes: list[Any], state: str) -> int:
    return sum(change.state == state for change in changes)
