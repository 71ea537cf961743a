"""Workers that are killed at random under load: what has happened, has happened as often as is promised."""

from __future__ import annotations

import asyncio
import os
import random
from asyncio.subprocess import Process
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from tests.acceptance.effect_agents import STEPS
from tests.acceptance.processes import worker_process
from tests.rig import Rig, eventually
from tests.stores import Cluster, new_database
from warren.client.client import make_task
from warren.store.database import Store
from warren_schemas import Result

WORKERS = 3
FULL = (5_000, 10)  # tasks, and kills meanwhile: more than a minute, so in full on one profile only
SMALL = (500, 3)
PATIENCE = 240.0  # seconds for the whole load, on a busy machine

MAKE_EFFECTS = "CREATE TABLE effects (id bigserial PRIMARY KEY, number int, step int, pid int)"


@dataclass
class Fleet:
    """Worker processes of which each may be killed; another takes its place."""

    rig: Rig
    settings: dict[str, Any]
    chance: random.Random
    stack: AsyncExitStack
    alive: list[Process] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    async def grow(self) -> None:
        """Start one more worker."""
        self.alive.append(await self.stack.enter_async_context(worker_process(self.rig, **self.settings)))

    async def lose_one(self) -> None:
        """Kill any one."""
        victim = self.alive.pop(self.chance.randrange(len(self.alive)))
        victim.kill()
        await victim.wait()
        self.killed.append(victim.pid)


@asynccontextmanager
async def fleet(rig: Rig, chance: random.Random, **settings: Any) -> AsyncIterator[Fleet]:
    """`WORKERS` workers; whichever are left are stopped at the end, and stop well."""
    async with AsyncExitStack() as stack:
        workers = Fleet(rig, settings, chance, stack)
        for _ in range(WORKERS):
            await workers.grow()
        yield workers
        for worker in workers.alive:
            worker.terminate()
        assert [await asyncio.wait_for(worker.wait(), 30) for worker in workers.alive] == [0] * WORKERS


@pytest.fixture
async def database(postgresql: Callable[[], Cluster]) -> str:
    """The store, and beside it the table of effects."""
    url = await new_database(postgresql().url)
    async with Store(url, migrate=True):
        pass
    await _ask(url, MAKE_EFFECTS)
    return url


async def test_workers_killed_at_random_lose_nothing_and_end_nothing_twice(
    rig: Rig, database: str, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("WARREN_TEST_SEED", random.randrange(2**32)))
    print(f"WARREN_TEST_SEED={seed}")  # shown where the test fails
    chance = random.Random(seed)
    count, kills = FULL if rig.profile == "quorum" else SMALL
    tasks = [make_task("errand", {"number": number, "world": database}) for number in range(count)]
    answers: list[Result] = []
    settings = {
        "target": "tests.acceptance.effect_agents:app",
        "store_url": database,
        "queue_capacity": 2 * count,
        "log_level": "error",
        # Of a random kill every task is innocent, but whichever was there each time would be poison at three.
        "crash_limit": kills + 1,
    }
    # Nothing ages: a worker killed in the middle of that leaves two copies, and one may overtake the other,
    # whose worker lives.
    async with fleet(rig, chance, **settings) as workers, rig.client(ageing_step=3600) as client:

        async def ask(task: Any) -> None:
            answers.append(await client.result_of(task))

        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(ask(task))
            moments = sorted(chance.sample(range(1, count * 9 // 10), kills))
            for moment in moments:
                await eventually(lambda: len(answers) >= moment, f"{moment} answers", PATIENCE)  # noqa: B023
                await workers.lose_one()
                await workers.grow()
            await eventually(lambda: len(answers) == count, "every task is answered", PATIENCE)
    doubled = await _look_at_effects(database, answers, set(workers.killed))
    record_property("effects_doubled", doubled)
    print(f"{kills} workers killed, {doubled} effects of {count * STEPS} happened again")
    assert await _ask(database, "SELECT status, count(*) FROM tasks GROUP BY status") == [
        ("succeeded", count)
    ]
    assert await _ask(database, "SELECT count(*) FROM steps") == [(count * STEPS,)]
    for queue in (rig.names.queue("errand"), rig.names.dead, rig.names.ageing):
        assert await rig.depth(queue) == 0


async def _look_at_effects(database: str, answers: list[Result], killed: set[int]) -> int:
    """How many effects happened again; each of those must be what a killed worker left behind."""
    rows: defaultdict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for id_, number, step, pid in await _ask(database, "SELECT id, number, step, pid FROM effects"):
        rows[number, step][id_] = pid
    assert len(rows) == len(answers) * STEPS
    counted = {id_ for answer in answers for id_ in _effects_of(answer)}
    again = {what: len(done) - 1 for what, done in rows.items() if len(done) > 1}
    for what, done in rows.items():
        left_over = {id_: pid for id_, pid in done.items() if id_ not in counted}
        assert len(left_over) == len(done) - 1, f"effect {what}: {done} happened, but not one of them counts"
        assert set(left_over.values()) <= killed, f"effect {what} happened again, but its worker was alive"
    return sum(again.values())


def _effects_of(answer: Result) -> list[int]:
    assert answer.status == "succeeded"
    assert isinstance(answer.result, list)
    return [int(str(id_)) for id_ in answer.result]


async def _ask(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
