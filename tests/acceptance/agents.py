"""The agents of worker processes under test. They write down what they do in the task's journal file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from warren import Context, RetryAfter, Warren

GLANCE = 0.05  # seconds between two looks at a gate

app = Warren()


class Work(BaseModel):
    """A task: `name` is written into `journal`; without the file `gate` the agent goes on waiting."""

    name: str
    journal: Path
    gate: Path | None = None


def note(work: Work, what: Literal["start", "effect", "end"], ctx: Context) -> None:
    """Append one line in one write: lines of several processes never mix."""
    line = f"{what} {work.name} {ctx.attempt} {os.getpid()}\n"
    journal = os.open(work.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)


@app.agent("gated")
async def gated(work: Work, ctx: Context) -> int:
    """Runs until its gate is there, and returns the attempt that it was."""
    note(work, "start", ctx)
    while work.gate is not None and not work.gate.exists():  # noqa: ASYNC110 - a file has no event
        await asyncio.sleep(GLANCE)
    note(work, "end", ctx)
    return ctx.attempt


@app.agent("later", concurrency=20)
async def later(work: Work, ctx: Context) -> int:
    """Asks for a long wait, once."""
    note(work, "start", ctx)
    if ctx.attempt == 1:
        raise RetryAfter(3600)
    note(work, "end", ctx)
    return ctx.attempt


@app.agent("moody", concurrency=5)
async def moody(mood: Path) -> str:
    """Fails while the file is there."""
    if mood.exists():
        raise ConnectionError(f"{mood.name} is there")
    return "fine"


@app.agent("failing", concurrency=5)
async def failing(_payload: object) -> None:
    """Fails with more to say than a header should hold."""
    raise ValueError("no way: " + "ü" * 20_000)


@app.agent("talk", retries=0)
async def talk(payload: str, ctx: Context) -> str:
    """Print and log."""
    print(payload, flush=True)
    ctx.log.warning("talk.said", payload=payload)
    return payload
