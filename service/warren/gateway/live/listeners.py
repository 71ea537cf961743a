"""Listeners to one task each, and the turns in which they are woken.

A slow listener keeps only the newest events of its task and the outcome. So the memory for slow listeners
does not grow with time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Final
from uuid import UUID

from warren.gateway.middleware.authentication import Caller
from warren.store.task_records import TaskRecord

KEPT: Final = 32  # events that a slow listener has before it; the oldest give way
AT_ONCE: Final = 16  # listeners woken in one turn of the event loop


class Listener:
    """An authorised reader of one task's events."""

    def __init__(self, task_id: UUID, caller: Caller) -> None:
        self.task_id, self.caller = task_id, caller
        self._events: deque[bytes] = deque(maxlen=KEPT)
        self._wake = asyncio.Event()
        self._is_over = False
        self.ended: TaskRecord | None = None

    def tell(self, event: bytes) -> None:
        """Queue an encoded event. It is sent after `wake`."""
        self._events.append(event)

    def end(self, record: TaskRecord | None = None) -> None:
        """End the stream with the task's outcome, or without one: the gateway, key or session has ended."""
        self._is_over, self.ended = True, record

    def wake(self) -> None:
        """Send the queued events."""
        self._wake.set()

    async def heard(self) -> AsyncIterator[bytes]:
        """The queued events in batches, until the end of the stream."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events:
                events = b"".join(self._events)
                self._events.clear()
                yield events
            if self._is_over:
                return


class Turns:
    """Wakes listeners with queued events, a few in each turn of the event loop.

    If ten thousand were woken at once, every other request would wait until all of them had been served.
    """

    def __init__(self) -> None:
        self._due: dict[Listener, None] = {}  # in the order of their first queued event
        self._some = asyncio.Event()

    def wake_soon(self, listeners: Iterable[Listener]) -> None:
        """Give these listeners a turn. A listener that already waits keeps its place."""
        self._due.update(dict.fromkeys(listeners))
        self._some.set()

    def forget(self, listener: Listener) -> None:
        """Remove a listener."""
        self._due.pop(listener, None)

    async def run(self) -> None:
        """Give turns, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._due:
                for listener in tuple(islice(self._due, AT_ONCE)):
                    del self._due[listener]
                    listener.wake()
                await asyncio.sleep(0)
