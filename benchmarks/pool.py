"""What the pool costs: the time of a lease and its release, and the memory of agents that wait.

    uv run python benchmarks/pool.py

No broker is needed. Leases are of one idle function agent among 500 of 500 users. The time is the median of
rounds, the memory what tracemalloc counts. Exit status 1 when a figure is over its promise.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
import tracemalloc
from contextlib import AsyncExitStack
from typing import Final

import uvloop

from warren import Settings, Warren
from warren.agents.app import AgentSpec
from warren.worker.pool.pool import Pool

LEASE_PROMISE: Final = 10e-6  # seconds for a lease and its release
MEMORY_PROMISE: Final = 10 * 1024 * 1024  # bytes for AGENTS idle agents
AGENTS: Final = 500
ROUNDS: Final = 9
LEASES: Final = 20_000  # a round


def function_agent() -> AgentSpec:
    """One function agent, as an application describes it."""
    app = Warren()

    @app.agent("noop")
    async def noop() -> None: ...

    return app.agents["noop"]


async def fill(pool: Pool, spec: AgentSpec) -> None:
    """Make one idle agent for each of the users."""
    async with AsyncExitStack() as stack:
        for number in range(AGENTS):
            await stack.enter_async_context(pool.lease(spec, f"user-{number}"))


async def seconds_a_lease(pool: Pool, spec: AgentSpec) -> float:
    """The median over the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(LEASES):
            async with pool.lease(spec, "user-250"):
                pass
        rounds.append((time.perf_counter() - began) / LEASES)
    return statistics.median(rounds)


async def measure() -> tuple[float, int]:
    """Seconds for a lease, bytes for the idle agents."""
    spec, pool = function_agent(), Pool(Settings(), lambda *_, **__: None)
    gc.collect()
    tracemalloc.start()
    await fill(pool, spec)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pool) == AGENTS
    seconds = await seconds_a_lease(pool, spec)
    await pool.close()
    return seconds, size


def main() -> None:
    """Measure, print, and judge."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds, size = runner.run(measure())
    print(f"lease and release   {seconds * 1e6:8.2f} us   (promised: {LEASE_PROMISE * 1e6:g} us at most)")
    print(
        f"{AGENTS} idle agents     {size / 1024:8.0f} KiB  (promised: {MEMORY_PROMISE / 1024:g} KiB at most)"
    )
    sys.exit(seconds > LEASE_PROMISE or size > MEMORY_PROMISE)


if __name__ == "__main__":
    main()
