"""PostgreSQL that fails in the middle of a load: nothing is lost, and everything ends once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from tests.rig import Rig, eventually
from tests.stores import Cluster, new_database

from warren import Context, Warren
from warren.store import Store

TASKS = 600
TERMINATED = 30  # backends
TO_BREAK = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR state = 'idle in transaction')"""

IsDown = Callable[[], bool]


async def restarted(server: Cluster, _url: str, is_down: IsDown) -> None:
    """The server crashes and comes back."""
    await asyncio.to_thread(server.stop, "immediate")
    await eventually(is_down, "the outage is told")
    await asyncio.to_thread(server.start)


async def out_of_connections(_server: Cluster, url: str, is_down: IsDown) -> None:
    """Somebody takes every connection that is free, until that is felt."""
    async with AsyncExitStack() as taken:
        while not is_down():
            try:
                connection = await asyncpg.connect(url)
            except asyncpg.TooManyConnectionsError:
                await asyncio.sleep(0.01)
            else:
                taken.push_async_callback(connection.close)


async def terminated(_server: Cluster, url: str, is_down: IsDown) -> None:
    """Backends die in the middle of their transactions, many times."""
    connection, count = await asyncpg.connect(url), 0
    try:
        while count < TERMINATED or not is_down():
            count += len(await connection.fetch(TO_BREAK))
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


@pytest.mark.parametrize("fault", [restarted, out_of_connections, terminated])
async def test_a_fault_under_load_loses_nothing_and_repeats_nothing(
    rig: Rig,
    postgresql: Callable[[], Cluster],
    fault: Callable[[Cluster, str, IsDown], Awaitable[None]],
) -> None:
    server = postgresql()
    url = await new_database(server.url)
    async with Store(url, migrate=True):
        pass
    app, effects, answered = Warren(), Counter[tuple[int, int]](), list[int]()

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

        async def ask(number: int) -> None:
            answered.append(int(str(await client.run("steps", number, timeout=120))))

        for number in range(TASKS):
            group.create_task(ask(number))
        await eventually(lambda: len(answered) > TASKS // 10, "the load is under way")
        await fault(server, url, lambda: any(event.state == "down" for event in events))
        assert len(answered) < TASKS
        await eventually(lambda: len(answered) == TASKS, "every task is answered", 120)
        await eventually(lambda: events[-1].state == "up", "the end of the outage is told")
        await eventually(lambda: worker.running == 0, "everything is settled")
    assert sorted(answered) == list(range(TASKS))
    assert set(effects.values()) == {1}
    assert len(effects) == 3 * TASKS
    assert [event.state for event in events] == ["down", "up"] * (len(events) // 2)
    assert await _ask(url, "SELECT status, count(*) FROM tasks GROUP BY status") == [("succeeded", TASKS)]
    assert await rig.depth(rig.names.queue("steps")) == 0
    assert await rig.depth(rig.names.dead) == 0


async def _ask(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
