"""Background loops: named, started in one place, and loud when one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

import structlog

log = structlog.get_logger(__name__)


def is_cancelled() -> bool:
    """Whether the running task itself was cancelled.

    A channel that closes, or an agent, can throw a CancelledError too: that is no cancellation of ours.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class GrowingPause:
    """Seconds until a loop goes on after a round that failed: doubled each time, up to a limit."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._last = 0.0

    def failed(self) -> float:
        """The pause after one more failure."""
        self._last = min(max(2 * self._last, self._first), self._longest)
        return self._last

    def worked(self) -> None:
        """Begin with the first pause again."""
        self._last = 0.0


class Loops:
    """The background loops of one owner.

    Use it as an async context manager: leaving it cancels what still runs. `watch()` raises the first
    failure, so that an owner never goes on with half of its loops.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the coroutine in the background until it ends or `stop` cancels it."""
        task = asyncio.create_task(loop, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("loop.failed", loop=task.get_name(), error=str(error), kind=type(error).__name__)
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def watch(self) -> None:
        """Wait until a loop fails, and raise its error."""
        if self._failed is None:
            raise RuntimeError("Loops is not entered")
        await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Cancel every loop and wait until all of them have ended."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        elif self._failed is not None and not self._failed.cancelled():
            self._failed.exception()  # seen: it is either raised by watch() or logged when it happened
