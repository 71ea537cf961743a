"""Supervised background loops: named, started in one place, and loud when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

import structlog

log = structlog.get_logger(__name__)


def cancellations() -> int:
    """How often the running task was told to end. Read it before a call, and pass it to `is_cancelled`."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def is_cancelled(since: int) -> bool:
    """Whether the running task was told to end since `cancellations()` returned this count.

    A CancelledError from a channel that closes is no cancellation. Neither is one that was counted before:
    the code that caught it may not have called `uncancel`.
    """
    return cancellations() > since


def forget_cancellations() -> None:
    """Uncount all cancellations of the running task, because it has dealt with them."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


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
        error = _error_of(task)
        if error is None:
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


def _error_of(loop: asyncio.Task[None]) -> BaseException | None:
    """The error that a loop failed with. A CancelledError without a request is a failure too."""
    if not loop.cancelled():
        return loop.exception()
    if loop.cancelling():
        return None
    return RuntimeError(
        f"the loop {loop.get_name()!r} was ended by a CancelledError of something that it used"
    )
