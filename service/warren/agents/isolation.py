"""Isolation of agent code: each call runs in an asyncio task of its own, with a time limit.

Agents may leave their task in any state: swallow a cancellation, or leave one counted in `Task.cancelling()`
without a request (`asyncio.TaskGroup` of Python 3.11 does). The task that waits for the agent never runs
code of the agent's. So a CancelledError in it comes from the worker, and from nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

# Seconds that code has to end after it was cancelled; then it is left behind.
GRACE: Final = 1.0


@dataclass(slots=True)
class Ended:
    """How a call ended: with a value or an error. `is_late`: it was cancelled at the end of its time.

    `is_stuck`: it ignores its cancellation and still runs; there is neither a value nor an error.
    """

    value: Any = None
    error: BaseException | None = None
    is_late: bool = False
    is_stuck: bool = False


class Isolation:
    """Calls the agents of one worker, and keeps count of the calls that do not end."""

    def __init__(self) -> None:
        self._stuck: set[asyncio.Task[Ended]] = set()

    @property
    def left_behind(self) -> int:
        """Calls that ignored their cancellation and still run."""
        return len(self._stuck)

    async def call(
        self,
        function: Callable[[], Awaitable[Any]],
        seconds: float,
        fields: Callable[[], Mapping[str, Any]],
        *,
        name: str,
        grace: float,
    ) -> Ended:
        """Call a function for at most so many `seconds`, and `grace` seconds more once it was cancelled.

        Cancelled itself, it passes that on to the call in the same way, and raises CancelledError unless the
        call returns a value all the same. `fields` are logged of a call that is left behind.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(caught(function), name=name)
        over: asyncio.Future[None] = loop.create_future()
        task.add_done_callback(partial(_wake, over))
        timer = loop.call_later(seconds, _wake, over)
        try:
            await over
        except asyncio.CancelledError:
            ended = await self._cut_short(task, grace, fields)
            if ended.error is None and not ended.is_stuck:
                return ended
            raise
        finally:
            timer.cancel()
        if task.done():
            return _end_of(task)
        return replace(await self._cut_short(task, grace, fields), is_late=True)

    async def _cut_short(
        self, task: asyncio.Task[Ended], grace: float, fields: Callable[[], Mapping[str, Any]]
    ) -> Ended:
        task.cancel()
        try:
            await asyncio.wait({task}, timeout=grace)
        finally:
            if not task.done():
                self._leave_behind(task, fields())
        return _end_of(task) if task.done() else Ended(is_stuck=True)

    def _leave_behind(self, task: asyncio.Task[Ended], fields: Mapping[str, Any]) -> None:
        self._stuck.add(task)  # asyncio itself keeps no task alive
        task.add_done_callback(self._stuck.discard)
        hint = "it ignores its cancellation"
        log.error("agent.stuck", **fields, left_behind=self.left_behind, hint=hint)


async def caught(function: Callable[[], Awaitable[Any]]) -> Ended:
    """Call an agent's function, and catch every exception that it raises."""
    try:
        return Ended(await function())
    except BaseException as error:  # noqa: BLE001 - SystemExit in a task would end the event loop
        return Ended(error=error)


def _end_of(task: asyncio.Task[Ended]) -> Ended:
    """The end of a task; one that was cancelled before it began has called nothing."""
    return Ended(error=asyncio.CancelledError()) if task.cancelled() else task.result()


def _wake(over: asyncio.Future[None], _: object = None) -> None:
    if not over.done():
        over.set_result(None)
