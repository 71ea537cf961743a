"""The 200 of a worker are shared, not fenced off."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.rig import Rig, eventually
from warren import Warren
from warren.client.client import make_task

PREFETCH = 200
BRIEFLY = 0.15  # seconds
MANY = 1900  # tasks of each type: enough for shares to settle while they run


class Crowd:
    """Four agent types whose tasks run until the gate opens, or only for `BRIEFLY` once it has."""

    def __init__(self) -> None:
        self.app, self.gate = Warren(), asyncio.Event()
        self.running, self.most = Counter[str](), 0
        for agent_type in ("a", "b", "c"):
            self._register(agent_type, None)
        self._register("narrow", 5)

    def _register(self, agent_type: str, concurrency: int | None) -> None:
        @self.app.agent(agent_type, concurrency=concurrency)
        async def agent(_payload: int) -> None:
            self.running[agent_type] += 1
            self.most = max(self.most, self.running.total())
            try:
                await self.gate.wait()
                await asyncio.sleep(BRIEFLY)
            finally:
                self.running[agent_type] -= 1


async def test_a_busy_type_gets_what_idle_ones_do_not_use(rig: Rig) -> None:
    crowd = Crowd()
    async with rig.worker(crowd.app) as worker, rig.client() as client:
        await client.submit_many([make_task("a", number) for number in range(400)])
        await eventually(lambda: crowd.running["a"] >= 190, "the busy type has nearly all")
        await client.submit("b", 0)
        await eventually(lambda: crowd.running["b"] == 1, "an idle type still gets its task run at once")
        assert crowd.most <= PREFETCH
        crowd.gate.set()
        await eventually(lambda: worker.totals.succeeded == 401, "all ran")
    assert crowd.most <= PREFETCH


async def test_a_type_gets_its_share_back(rig: Rig) -> None:
    crowd = Crowd()
    async with rig.worker(crowd.app) as worker, rig.client() as client:
        await client.submit_many([make_task("a", number) for number in range(200)])
        await eventually(lambda: crowd.running["a"] >= 190, "one has nearly all")
        crowd.gate.set()
        await eventually(lambda: worker.totals.succeeded == 200, "its tasks ended")
        await client.submit_many([make_task(kind, number) for kind in "abc" for number in range(MANY)])
        await eventually(
            lambda: all(crowd.running[kind] >= 30 for kind in "abc"), "each of three busy ones has its share"
        )
        await eventually(lambda: worker.totals.succeeded == 200 + 3 * MANY, "all ran")
    assert crowd.most <= PREFETCH


async def test_concurrency_is_a_hard_ceiling(rig: Rig) -> None:
    crowd = Crowd()
    async with rig.worker(crowd.app) as worker, rig.client() as client:
        await client.submit_many([make_task("narrow", number) for number in range(50)])
        await client.submit_many([make_task("a", number) for number in range(400)])
        await eventually(lambda: crowd.running["a"] >= 190, "the other has nearly all")
        assert crowd.running["narrow"] == 5
        crowd.gate.set()
        await eventually(lambda: worker.totals.succeeded == 450, "all ran")
