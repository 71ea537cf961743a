"""Class agents of worker processes under test."""

from __future__ import annotations

import asyncio

from warren import Agent, Warren

app = Warren()


async def stubborn() -> None:
    """Goes on through every cancellation."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@app.agent("leaves")
class Leaving(Agent):
    """Leaves a background task behind whenever it is called."""

    async def start(self) -> None:
        self.left = [asyncio.create_task(stubborn())]

    async def run(self) -> int:
        self.left.append(asyncio.create_task(stubborn()))
        return len(self.left)

    async def stop(self) -> None:
        self.left.append(asyncio.create_task(stubborn()))
