"""The agents of a fleet under faults. What they do to the world they write to a file that is not Warren's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from tests.faults.effects import DONE, EFFECT, REMEMBERED, is_first, note
from warren import Context, Reject, Warren

STEPS: Final = ("first", "second")
FAILS: Final = 6  # of the flaky tasks, every sixth fails once

app = Warren()


class Work(BaseModel):
    """A task: its number, how long it takes, and the file of effects."""

    number: int
    seconds: float = 0.0
    effects: Path


def result_of(number: int) -> int:
    """What the task of this number has to return."""
    return number * 7 + 3


async def _work(work: Work) -> int:
    await asyncio.sleep(work.seconds)
    note(work.effects, DONE, work.number)
    return result_of(work.number)


app.agent("quick")(_work)
app.agent("later")(_work)
app.agent("probe")(_work)


@app.agent("flaky")
async def flaky(work: Work) -> int:
    """Some of them fail once."""
    # Not by `ctx.attempt`: a failure while the breaker is not closed is no attempt, and could come for ever.
    if work.number % FAILS == 0 and is_first(work.effects, work.number):
        raise ConnectionError("as the first run of some")
    return await _work(work)


@app.agent("doomed")
async def doomed(work: Work) -> None:
    """Dead, as it should be."""
    await asyncio.sleep(work.seconds)
    note(work.effects, DONE, work.number)
    raise Reject("as always")


@app.agent("steps")
async def steps(work: Work, ctx: Context) -> list[int]:
    """Two steps with an effect each; what they return says which process had it."""

    async def act(step: str) -> int:
        note(work.effects, EFFECT, work.number, step)
        await asyncio.sleep(work.seconds / 2)
        return os.getpid()

    for step in STEPS:
        await ctx.step(step, act, step)
        note(work.effects, REMEMBERED, work.number, step)
    note(work.effects, DONE, work.number)
    return [result_of(work.number), len(STEPS)]
