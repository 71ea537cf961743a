"""PostgreSQL that fails in the middle of a load: nothing is lost, and everything ends once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import asyncpg
import pytest

from tests.rig import Rig, eventually
from tests.stores import Cluster, new_database
from warren import Client, Context, Warren
from warren.store.database import Store
from warren_schemas import Event

PRODUCERS = 200  # tasks under way at any time
TERMINATED = 30  # backends
TO_BREAK = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"""


@dataclass
class Load:
    """Tasks that are submitted and answered until `stop`, each as soon as another one has ended."""

    client: Client
    answered: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def produce(self) -> None:
        while not self.stop.is_set():
            number = next(self.numbers)
            assert await self.client.run("steps", number, timeout=60) == number
            self.answered.append(number)


async def restarted(server: Cluster, _url: str, events: list[Event]) -> None:
    """The server crashes and comes back."""
    await asyncio.to_thread(server.stop, "immediate")
    await eventually(lambda: events, "the outage is told")
    await asyncio.to_thread(server.start)


async def out_of_connections(_server: Cluster, url: str, events: list[Event]) -> None:
    """Somebody takes every connection that is free, until that is felt."""
    async with AsyncExitStack() as taken:

        async def take() -> bool:
            try:
                connection = await asyncpg.connect(url)
            except asyncpg.TooManyConnectionsError:
                return any("too many clients" in (event.reason or "") for event in events)
            taken.push_async_callback(connection.close)
            return False

        await eventually(take, "the worker is refused a connection")


async def terminated(_server: Cluster, url: str, events: list[Event]) -> None:
    """Backends die in the middle of their transactions, many times."""
    connection, broken = await asyncpg.connect(url), 0

    async def terminate() -> bool:
        nonlocal broken
        broken += len(await connection.fetch(TO_BREAK))
        return broken >= TERMINATED and bool(events)

    try:
        await eventually(terminate, "enough backends are gone")
    finally:
        await connection.close()


@pytest.mark.parametrize("fault", [restarted, out_of_connections, terminated])
async def test_a_fault_under_load_loses_nothing_and_repeats_nothing(
    rig: Rig,
    postgresql: Callable[[], Cluster],
    fault: Callable[[Cluster, str, list[Event]], Awaitable[None]],
) -> None:
    server = postgresql()
    url = await new_database(server.url)
    async with Store(url, migrate=True):
        pass
    app, effects = Warren(), Counter[tuple[int, int]]()

    @app.agent("steps")
    async def steps(number: int, ctx: Context) -> int:
        for step in range(3):
            await ctx.step(f"step {step}", effects.update, [(number, step)])
        return number

    async with (
        rig.worker(app, store_url=url) as worker,
        rig.client() as client,
        rig.listening("health.store.*") as events,
        asyncio.TaskGroup() as group,
    ):
        load = Load(client)
        for _ in range(PRODUCERS):
            group.create_task(load.produce())
        await eventually(lambda: len(load.answered) > PRODUCERS, "the load is under way")
        await fault(server, url, events)
        before = len(load.answered)
        await eventually(lambda: len(load.answered) > before + PRODUCERS, "the load goes on")
        load.stop.set()
        done = next(load.numbers)
        await eventually(lambda: len(load.answered) == done, "every task is answered")
        await eventually(lambda: events[-1].state == "up", "the end of the outage is told")
        await eventually(lambda: worker.running == 0, "everything is settled")
    assert sorted(load.answered) == list(range(done))
    assert effects == dict.fromkeys(((number, step) for number in range(done) for step in range(3)), 1)
    assert [event.state for event in events] == ["down", "up"] * (len(events) // 2)
    assert await _ask(url, "SELECT status, count(*) FROM tasks GROUP BY status") == [("succeeded", done)]
    assert await rig.depth(rig.names.queue("steps")) == 0
    assert await rig.depth(rig.names.dead) == 0


async def _ask(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
