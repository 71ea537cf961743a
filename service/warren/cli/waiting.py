"""Explanations for `warren submit --wait`: why no task has ended for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from rich.markup import escape

from warren.cli.shared import err
from warren.client.client import Client
from warren.errors import AccessRefused, BrokerError
from warren.fleet.membership import Peers
from warren.fleet.overview import AgentTypeLine, overview
from warren.settings import Settings
from warren_schemas import Task

QUIET: Final = 3.0  # seconds without any outcome, after which the fleet is listened to
AGAIN: Final = 30.0  # the same, once a reason was told
# A little more than a heartbeat interval, so that every worker is heard.
INTERVALS: Final = 1.2


class Explaining:
    """Prints why no task has ended for a while, and again when the reason changes."""

    def __init__(self, client: Client, settings: Settings, tasks: Collection[Task]) -> None:
        self._client, self._settings = client, settings
        self._open = {task.task_id: task for task in tasks}
        self._news = asyncio.Event()

    @property
    def waits_for(self) -> Collection[Task]:
        """The tasks that have not ended."""
        return self._open.values()

    def ended(self, task: Task) -> None:
        """Note that a task has ended."""
        self._open.pop(task.task_id, None)
        self._news.set()

    async def run(self) -> None:
        """Explain until cancelled, or until the broker refuses the right to read events."""
        pause, told = QUIET, list[str]()
        while True:
            await self._until_quiet_for(pause)
            try:
                reasons = await self._reasons()
            except AccessRefused:  # a user who may only submit gets no explanation
                return
            except BrokerError:  # the connection has logged the error, and reconnects
                continue
            if self._news.is_set():
                continue
            for reason in reasons:
                if reason not in told:
                    err.print(f"[yellow]waiting:[/] {escape(reason)}", soft_wrap=True, highlight=False)
            pause, told = AGAIN, reasons

    async def _until_quiet_for(self, seconds: float) -> None:
        while True:
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return

    async def _reasons(self) -> list[str]:
        """One reason for each agent type with open tasks."""
        now = datetime.now(UTC)
        due = [task for task in self.waits_for if task.not_before is None or task.not_before <= now]
        if not due:
            first = min((task.not_before for task in self.waits_for if task.not_before), default=None)
            return [] if first is None else [f"nothing is due before {first:%Y-%m-%d %H:%M:%S} UTC"]
        lines = await self._listen()
        return [
            why(name, lines.get(name), self._settings.queue_capacity)
            for name in sorted({task.agent_type for task in due})
        ]

    async def _listen(self) -> dict[str, AgentTypeLine]:
        """The agent types in the workers' heartbeats, heard for one heartbeat interval."""
        loop, peers = asyncio.get_running_loop(), Peers(self._settings.heartbeat_interval)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.heartbeat_interval * INTERVALS):
                async for event in self._client.events("health.worker.#"):
                    peers.take(event, loop.time())
        return overview(peers, loop.time()).agent_types


def why(name: str, line: AgentTypeLine | None, capacity: int) -> str:
    """Why a task of this agent type may not have ended, as far as its workers' heartbeats tell."""
    if line is None:
        return f"no worker that has {name!r} was heard: start one with `warren worker MODULE:APP`"
    if line.is_paused:
        return f"{name!r} is paused: `warren resume {name}` has it run again"
    if line.breakers and not line.breakers.get("closed"):
        return (
            f"the breaker of {name!r} is open, since it failed too often in a row: its tasks wait, and one "
            "is tried now and then; `warren events 'health.breaker.#'` tells how that goes"
        )
    if line.waiting is not None and line.waiting >= capacity:
        return f"the queue of {name!r} is full: what does not fit is submitted as soon as there is room"
    return f"tasks of {name!r} run, or wait for their turn: `warren status` shows how many"
