"""Memory budget for the tasks of a worker: `max_bytes_in_flight`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

# Smaller bodies count with their own size: a full prefetch of them, decoded, takes a few MB.
SMALL: Final = 4096  # bytes
# Bytes of memory for each JSON value, and for each object. A nested list takes 64, an object with one key 200
# or more, where JSON needs three bytes.
PER_VALUE: Final = 64
PER_OBJECT: Final = 256


def weight(body: bytes, limit: int) -> int:
    """A rough upper bound of the memory for a decoded body, in bytes. A body over `limit` is not decoded.

    Counting characters takes a thousandth of the time of decoding.
    """
    if len(body) < SMALL or len(body) > limit:
        return len(body)
    values = body.count(b",") + body.count(b"[")
    return len(body) + PER_VALUE * (values + 1) + PER_OBJECT * body.count(b"{")


class Freight:
    """Counts the bytes in flight. A task of any size is admitted if it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def admits(self, size: int, promised: int = 0) -> bool:
        """Whether there is room for `size` bytes now, beside `promised` bytes for others."""
        taken = self.bytes + promised
        return taken == 0 or taken + size <= self._limit

    def load(self, size: int) -> None:
        """Add a task's bytes."""
        self.bytes += size

    def unload(self, size: int) -> None:
        """Remove a task's bytes, and wake the waiting tasks that fit now, the oldest first."""
        self.bytes -= size
        promised = 0
        while self._waiting and self.admits(self._waiting[0][0], promised):
            wanted, told = self._waiting.popleft()
            if not told.done():
                promised += wanted
                told.set_result(None)

    async def has_room(self, size: int, timeout: float) -> None:
        """Wait until there is room for `size` bytes, but no longer than `timeout` seconds."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, told))
        await asyncio.wait([told], timeout=timeout)
        told.cancel()
