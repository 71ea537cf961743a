"""Bounds on the JSON in a body, checked before it is parsed; large bodies are parsed in threads.

A parsed value takes up to a hundred times the memory of its text: `[[],[],…]` of 16 MiB is 1.3 GiB. How deep
it may be nested is the parser's own limit (200 levels).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from warren.gateway.middleware.problems import ProblemError

LARGE: Final = 32 * 1024  # bytes that take long enough to be worth a thread
AT_ONCE: Final = 2  # large bodies that are parsed at the same time: each may take a hundred megabytes

T = TypeVar("T")


def check_bounds(body: bytes, most: int) -> None:
    """Raise ProblemError (413) for a body of more than `most` values, in time that its length bounds.

    Strings, and commas and opening brackets outside them, count as one each. What is no JSON may be counted
    wrongly: the parser refuses it.
    """
    if len(body) <= most:
        return
    pieces = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 2 * most + 2)
    outside = b"".join(pieces[::2])
    if len(pieces) // 2 + sum(map(outside.count, b",[{")) > most:
        raise ProblemError(
            413,
            f"the body holds more than {most} values (strings, commas and opening brackets): send fewer "
            "tasks at once, or much data as one string",
            limit=most,
        )


class Aside:
    """Processes small bodies at once, and large ones in threads, so that other requests go on."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    async def call(self, body: bytes, work: Callable[[], T]) -> T:
        """Call `work` on this body. Returns or raises what `work` does."""
        if len(body) < LARGE:
            return work()
        async with self._places:
            return await asyncio.to_thread(work)
