"""The memory that the tasks of a worker take, held below `max_bytes_in_flight`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

# Bodies below this are taken as they are: a full prefetch of them, decoded, is a few MB.
SMALL: Final = 4096  # bytes
# Bytes of memory for each value of JSON, and for each object: a list in a list takes 64, an object with one
# key 200 and more, where JSON needs three bytes for either.
PER_VALUE: Final = 64
PER_OBJECT: Final = 256


def weight(body: bytes, limit: int) -> int:
    """Bytes of memory that a body takes once it is decoded, at most and roughly; one over `limit` never is.

    Counting characters takes a thousandth of what decoding takes.
    """
    if len(body) < SMALL or len(body) > limit:
        return len(body)
    values = body.count(b",") + body.count(b"[")
    return len(body) + PER_VALUE * (values + 1) + PER_OBJECT * body.count(b"{")


class Freight:
    """Counts the bytes in flight. A task that is alone is always taken, however heavy it is."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def admits(self, size: int, promised: int = 0) -> bool:
        """Whether there is room for so many bytes now, beside those that are promised to others."""
        taken = self.bytes + promised
        return taken == 0 or taken + size <= self._limit

    def load(self, size: int) -> None:
        """Count a task in."""
        self.bytes += size

    def unload(self, size: int) -> None:
        """Count a task out. Of those that wait, as many are told as the room is for, the oldest first."""
        self.bytes -= size
        promised = 0
        while self._waiting and self.admits(self._waiting[0][0], promised):
            wanted, told = self._waiting.popleft()
            if not told.done():
                promised += wanted
                told.set_result(None)

    async def has_room(self, size: int, timeout: float) -> None:
        """Wait until there is room for so many bytes, but no longer than `timeout` seconds."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, told))
        await asyncio.wait([told], timeout=timeout)
        told.cancel()
