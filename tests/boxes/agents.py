"""Agents that the fleet in containers runs. `/boxes` is a folder of the test's own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from warren import Reject, Warren

BOXES = Path("/boxes")

app = Warren()


@app.agent("slow")
async def slow(number: int) -> int:
    """Take a while, and write down that this run came to its end, and where."""
    await asyncio.sleep(0.5)
    with (BOXES / f"ended-{socket.gethostname()}").open("a") as file:
        file.write(f"{number}\n")
    return number


@app.agent("ill", retries=0)
async def ill(payload: Any) -> None:
    """Fail each time: five in a row open its breaker."""
    raise RuntimeError("what it calls is down")


@app.agent("deadly")
async def deadly(payload: Any) -> None:
    """Refuse the task for good: a dead letter."""
    raise Reject("not with me")


@app.agent("idle")
async def idle(payload: Any) -> None:
    """Have a queue that a test fills while no worker runs."""
