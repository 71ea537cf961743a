"""Faults of the store: PostgreSQL, SQLite, and the disks under them."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import asyncpg

from tests.faults.catalogue import Need, row
from tests.faults.world import World

POSTGRESQL = {"databases": ("postgresql",)}
ROOT = Need("root, to mount a small disk", lambda: os.geteuid() == 0)
FULL = 15.0  # seconds
PAUSED = 15.0  # seconds


@row(lasts=6, **POSTGRESQL)
async def postgresql_restarted(world: World) -> None:
    """PostgreSQL is stopped, and started 5 s later."""
    assert world.database.server is not None
    await world.in_thread(world.database.server.stop)
    await asyncio.sleep(5)
    await world.in_thread(world.database.start_server)


@row(lasts=8, **POSTGRESQL)
async def postgresql_killed(world: World) -> None:
    """PostgreSQL and all its sessions are killed (SIGKILL), and started 5 s later."""
    await world.in_thread(world.database.kill_server)
    await asyncio.sleep(5)
    await world.in_thread(world.database.start_server)


@row(lasts=FULL + 3, small_disk=True, needs=ROOT, in_soak=False, **POSTGRESQL)
async def postgresql_disk_full(world: World) -> None:
    """The disk under PostgreSQL is full for 15 s; a server that stops over it is then started again."""
    await world.in_thread(world.database.fill_disk)
    try:
        await asyncio.sleep(FULL)
    finally:
        await world.in_thread(world.database.free_disk)
    await world.in_thread(world.database.start_server)


@row(lasts=15, **POSTGRESQL)
async def postgresql_out_of_connections(world: World) -> None:
    """Other clients hold every connection of PostgreSQL for 15 s, and those of the fleet are ended."""
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {}"
    async with AsyncExitStack() as taken:
        connection = await asyncpg.connect(world.database.url)
        taken.push_async_callback(connection.close)
        until = asyncio.get_running_loop().time() + 15
        mine = [connection.get_server_pid()]
        while asyncio.get_running_loop().time() < until:
            await connection.fetch(ours.format("backend_type = 'client backend' AND pid <> ALL($1)"), mine)
            await _take_all(world, taken, mine)
            await asyncio.sleep(0.5)


async def _take_all(world: World, taken: AsyncExitStack, mine: list[int]) -> None:
    while True:
        try:
            connection = await asyncpg.connect(world.database.url)
        except (asyncpg.TooManyConnectionsError, asyncpg.InvalidAuthorizationSpecificationError):
            return
        mine.append(connection.get_server_pid())
        taken.push_async_callback(connection.close)


@row(lasts=PAUSED, **POSTGRESQL)
async def postgresql_host_paused(world: World) -> None:
    """PostgreSQL and all its sessions stand still (SIGSTOP) for 15 s, and go on."""
    pids = world.database.server_pids()
    world.freeze(*pids)
    try:
        await asyncio.sleep(PAUSED)
    finally:
        world.thaw(*pids)


@row(lasts=FULL, small_disk=True, needs=ROOT, in_soak=False, databases=("sqlite",))
async def sqlite_disk_full(world: World) -> None:
    """The disk under SQLite is full for 15 s."""
    await world.in_thread(world.database.fill_disk)
    try:
        await asyncio.sleep(FULL)
    finally:
        await world.in_thread(world.database.free_disk)
