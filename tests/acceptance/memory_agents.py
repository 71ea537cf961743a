"""Agents of worker processes that remember, or kill."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.acceptance.agents import GLANCE, Work, gated, note
from warren import Context, Warren

app = Warren()
app.agent("gated")(gated)


@app.agent("stepper")
async def stepper(work: Work, ctx: Context) -> list[int]:
    """Two steps, the second behind the gate: what it returns says who ran each of them."""

    async def second() -> int:
        while work.gate is not None and not work.gate.exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(GLANCE)
        return os.getpid()

    note(work, "start", ctx)
    first = await ctx.step("first", os.getpid)
    result = [first, await ctx.step("second", second)]
    note(work, "end", ctx)
    return result


@app.agent("walker")
async def walker(work: Work, ctx: Context) -> None:
    """Two steps that are effects, and a gate between them."""
    for step in ("first", "second"):
        await ctx.step(step, note, work.model_copy(update={"name": f"{work.name}/{step}"}), "effect", ctx)
        while work.gate is not None and not work.gate.exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(GLANCE)
    note(work, "end", ctx)


@app.agent("killer")
async def killer(work: Work, ctx: Context) -> None:
    """Kills its own process, as a crash of an extension module would."""
    note(work, "start", ctx)
    os.kill(os.getpid(), signal.SIGKILL)


@app.agent("slow-killer")
async def slow_killer(work: Work, ctx: Context) -> None:
    """Kills its own process, once its gate is there."""
    note(work, "start", ctx)
    while work.gate is not None and not work.gate.exists():  # noqa: ASYNC110 - a file has no event
        await asyncio.sleep(GLANCE)
    os.kill(os.getpid(), signal.SIGKILL)


# A full worker of 200: one that kills it, and 199 beside it.
crowd = Warren()
crowd.agent("gated", concurrency=199)(gated)
crowd.agent("killer", concurrency=1)(killer)

# All places of a worker for one agent type.
only_walker = Warren()
only_walker.agent("walker")(walker)
only_gated = Warren()
only_gated.agent("gated")(gated)
