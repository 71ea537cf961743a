"""Those who listen to one task each, and their turns.

A listener that is slow keeps the newest events of its task, and its outcome: neither it nor ten thousand like
it take more memory the longer they wait.
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
AT_ONCE: Final = 16  # listeners that are sent to in one turn of the event loop


class Listener:
    """Somebody who wants to know what happens to one task, and whose key allows it."""

    def __init__(self, task_id: UUID, caller: Caller) -> None:
        self.task_id, self.caller = task_id, caller
        self._events: deque[bytes] = deque(maxlen=KEPT)
        self._wake = asyncio.Event()
        self._is_over = False
        self.ended: TaskRecord | None = None

    def tell(self, event: bytes) -> None:
        """Something has happened, as it is sent. It is sent after `wake`."""
        self._events.append(event)

    def end(self, record: TaskRecord | None = None) -> None:
        """The task has ended so, or (without a record) the gateway, the key or the session has."""
        self._is_over, self.ended = True, record

    def wake(self) -> None:
        """Let what was told go out."""
        self._wake.set()

    async def heard(self) -> AsyncIterator[bytes]:
        """What happens, some events at a time, until it is over."""
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
    """Wakes those who were told something, a few in each turn of the event loop.

    All at once, ten thousand would hold up every other request for as long as it takes to send to them.
    """

    def __init__(self) -> None:
        self._due: dict[Listener, None] = {}  # in the order in which they were told
        self._some = asyncio.Event()

    def wake_soon(self, listeners: Iterable[Listener]) -> None:
        """They were told something. Who waits for a turn already keeps it."""
        self._due.update(dict.fromkeys(listeners))
        self._some.set()

    def forget(self, listener: Listener) -> None:
        """It does not listen any more."""
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
