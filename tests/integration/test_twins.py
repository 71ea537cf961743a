"""A task that its producer published twice: what one run has remembered, the other does not do again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.integration.test_store import entry
from tests.rig import PATIENCE, Rig, eventually, publish, task_body
from tests.stores import Cluster, new_database
from tests.toolbox import logged, replies
from warren import Context, Warren
from warren.agents.steps import Memory
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.worker import redelivery as takeover
from warren.worker import services as remembering


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Callable[[], Cluster]) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    url = await new_database(postgresql().url)
    async with Store(url, migrate=True):
        return url


class Shop:
    """An agent with two effects; before the second one it waits for the gate."""

    def __init__(self) -> None:
        self.app, self.gate = Warren(), asyncio.Event()
        self.effects, self.begun = Counter[str](), 0

        @self.app.agent("order", retries=0)
        async def order(_: Any, ctx: Context) -> int:
            self.begun += 1
            await ctx.step("pay", self._do, "pay")
            await self.gate.wait()
            return int(await ctx.step("ship", self._do, "ship"))

    async def _do(self, what: str) -> int:
        self.effects[what] += 1
        return self.effects[what]


async def test_in_one_worker_a_twin_that_comes_late_repeats_nothing(rig: Rig, store_url: str) -> None:
    shop, body = Shop(), task_body("order")
    shop.gate.set()
    async with (
        replies(rig) as (queue, answers),
        rig.worker(shop.app, store_url=store_url) as worker,
        rig.plain() as channel,
    ):
        for _ in range(2):
            await publish(channel, rig.names.tasks, "order", body, reply_to=queue)
            assert (await asyncio.wait_for(answers.get(), PATIENCE)).result == 1
        assert worker.totals.superseded == 1
        await eventually(lambda: worker.running == 0, "nothing is left")
    assert shop.effects == {"pay": 1, "ship": 1}


async def test_a_twin_without_steps_that_comes_late_runs_in_vain_and_is_answered(
    rig: Rig, store_url: str
) -> None:
    app, runs = Warren(), 0

    @app.agent("count")
    async def count(_: Any) -> int:
        nonlocal runs
        runs += 1
        return runs

    body = task_body("count")
    async with (
        replies(rig) as (queue, answers),
        rig.worker(app, store_url=store_url) as worker,
        rig.plain() as channel,
    ):
        for _ in range(3):
            await publish(channel, rig.names.tasks, "count", body, reply_to=queue)
            assert (await asyncio.wait_for(answers.get(), PATIENCE)).result == 1
        await eventually(lambda: worker.running == 0, "nothing is left")


async def test_in_two_workers_the_run_that_came_first_is_left_alone_while_its_worker_lives(
    rig: Rig, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fast, and in the same proportion: a worker that was asked gives several signs of life within a silence.
    monkeypatch.setattr(remembering, "LOOK", 0.1)
    monkeypatch.setattr(takeover, "SILENCE", 2.0)
    monkeypatch.setattr(takeover, "LONGEST_WATCH", 5.0)
    shop, body = Shop(), task_body("order")
    async with (
        replies(rig) as (queue, answers),
        rig.worker(shop.app, store_url=store_url, prefetch=1) as one,
        rig.plain() as channel,
    ):
        await publish(channel, rig.names.tasks, "order", body, reply_to=queue)
        await eventually(lambda: shop.effects == {"pay": 1}, "the first run has begun")
        with capture_logs() as logs:
            async with rig.worker(shop.app, store_url=store_url, prefetch=1) as two:
                await publish(channel, rig.names.tasks, "order", body, reply_to=queue)
                await eventually(lambda: two.totals.superseded == 1, "the second run is none")
                await eventually(
                    lambda: logged(logs, "task.runs_elsewhere"), "the first run gives signs of life"
                )
                shop.gate.set()
                results = [(await asyncio.wait_for(answers.get(), PATIENCE)).result for _ in range(2)]
                await eventually(lambda: one.running == two.running == 0, "nothing is left")
    assert results == [1, 1]
    assert one.totals.superseded == 0
    assert shop.effects == {"pay": 1, "ship": 1}
    assert not logged(logs, "task.suspect")


async def test_a_twin_goes_on_where_the_worker_of_the_first_run_died(
    rig: Rig, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "SILENCE", 0.5)
    shop, body = Shop(), task_body("order")
    async with (
        replies(rig) as (queue, answers),
        rig.worker(shop.app, store_url=store_url) as worker,
        rig.plain() as channel,
    ):
        async with Store(store_url) as store:
            await left_by_the_dead(store, body)
        shop.gate.set()
        await publish(channel, rig.names.tasks, "order", body, reply_to=queue)
        assert (await asyncio.wait_for(answers.get(), PATIENCE)).result == 1
        assert worker.totals.superseded == 1
    assert shop.effects == {"ship": 1}


async def left_by_the_dead(store: Store, body: dict[str, Any]) -> None:
    """What another worker had remembered of the task when it died and its message was lost."""
    ledger = Ledger(store, "dead", lambda _up, _reason: None)
    run = entry(UUID(body["task_id"]), agent_type="order", status="running", worker_id="dead")
    await Memory(ledger, run, 1000).step("pay", lambda: 1)
