"""Agents whose steps have an effect on the world: a row in a table that is not Warren's."""

from __future__ import annotations

import asyncio
import os

import asyncpg
from pydantic import BaseModel

from warren import Context, Warren

STEPS = 3
CONNECTIONS = 3  # of each worker to the world

app = Warren()
_opening = asyncio.Lock()
_worlds: dict[str, asyncpg.Pool] = {}


class Errand(BaseModel):
    """A task: its number, and the database that has the table `effects`."""

    number: int
    world: str


@app.agent("errand")
async def errand(errand: Errand, ctx: Context) -> list[int]:
    """Returns the rows that its steps wrote: those that count."""
    world = await _opened(errand.world)
    return [await ctx.step(f"step {step}", _effect, world, errand.number, step) for step in range(STEPS)]


async def _effect(world: asyncpg.Pool, number: int, step: int) -> int:
    """Committed when it returns, like a payment that was made: it cannot be taken back."""
    row = "INSERT INTO effects (number, step, pid) VALUES ($1, $2, $3) RETURNING id"
    return int(await world.fetchval(row, number, step, os.getpid()))


async def _opened(url: str) -> asyncpg.Pool:
    async with _opening:
        if url not in _worlds:
            # Whatever dies here, the server does not: no effect has to wait for the disk.
            quick = {"synchronous_commit": "off"}
            _worlds[url] = await asyncpg.create_pool(
                url, min_size=CONNECTIONS, max_size=CONNECTIONS, server_settings=quick
            )
    return _worlds[url]
