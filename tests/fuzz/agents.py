"""The agents of workers under fuzz: the bystander, and those that extremes are sent to."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from warren import Context, Reject, RetryAfter, Warren

app = Warren()


@app.agent("bystander", concurrency=50)
async def bystander(payload: Any) -> Any:
    """Gives back what it gets; its tasks are what the fleet is judged by."""
    return payload


@app.agent("doomed", concurrency=20, retries=0)
async def doomed(_payload: Any) -> None:
    """Fails, as it should: its letter has to arrive."""
    raise Reject("as always")


@app.agent("echo")
async def echo(payload: Any) -> Any:
    """Gives back what it gets."""
    return payload


@app.agent("fail", retries=1)
async def fail(payload: Any) -> None:
    """Fails with what it gets."""
    raise ValueError(payload)


@app.agent("refuse", retries=1)
async def refuse(payload: Any) -> None:
    """Refuses with what it gets."""
    raise Reject(str(payload))


@app.agent("later", retries=1)
async def later(seconds: float, ctx: Context) -> int:
    """Asks to be run again after what it gets."""
    if ctx.attempt == 1:
        raise RetryAfter(seconds)
    return ctx.attempt


@app.agent("remember", retries=1)
async def remember(payload: Any, ctx: Context) -> Any:
    """Remembers what it gets, under a name made of it, and tells how far it is."""
    ctx.progress(0.5, str(payload))
    await ctx.checkpoint(payload)
    return await ctx.step(str(payload), lambda: payload)


@app.agent("blocking", retries=1)
def blocking(payload: Any) -> Any:
    """Gives back what it gets, from a thread."""
    return payload


class Colour(enum.Enum):
    """Something to choose from."""

    RED = "red"


class Strict(BaseModel):
    """A payload of many types."""

    at: datetime | None = None
    id: UUID | None = None
    amount: Decimal | None = None
    colour: Colour | None = None
    number: int | None = None
    ratio: float | None = None
    text: str | None = None
    inner: list[Strict] = []


@app.agent("strict", retries=1)
async def strict(payload: Strict) -> Strict:
    """Gives back what it gets, validated."""
    return payload
