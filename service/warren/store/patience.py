"""Patient store: operations wait and retry while the database is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog
from sqlalchemy import Connection

from warren.errors import StoreBusy, StoreUnavailable, StoreUnusable
from warren.store.database import Store
from warren.store.outage import Outage

log = structlog.get_logger(__name__)

T = TypeVar("T")
Row = TypeVar("Row")

FIRST_PAUSE: Final = 0.1  # seconds; doubles up to LONGEST_PAUSE while the store is away
LONGEST_PAUSE: Final = 5.0


class PatientStore:
    """Runs operations on a store, and retries them without a limit while it is away.

    `on_change(up, reason)` is called when the store goes away and when it is back.
    """

    def __init__(self, store: Store, on_change: Callable[[bool, str], None]) -> None:
        self.store, self._on_change = store, on_change
        self._outage = Outage()

    @property
    def is_up(self) -> bool:
        """Whether the store answers, as far as is known."""
        return self._outage.is_up

    async def surely(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in a transaction. While the store is away, wait and try again."""
        return await self._patiently(lambda: self.store.run(act))

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    result = await act()
                except StoreBusy as error:
                    log.warning("store.busy", reason=str(error))
                except StoreUnavailable as error:
                    if self._outage.failed(act, time.monotonic()):
                        log.error("store.down", reason=str(error))
                        self._on_change(False, str(error))  # noqa: FBT003 - a callback's signature
                else:
                    if self._outage.succeeded(act, time.monotonic()):
                        log.info("store.up")
                        self._on_change(True, "")  # noqa: FBT003 - a callback's signature
                    return result
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - only to spread
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._outage.given_up(act)


async def apart(
    rows: Sequence[Row],
    write: Callable[[Sequence[Row]], Awaitable[Sequence[T]]],
    refused: Callable[[Row, Exception], T],
) -> list[T]:
    """Write rows together. If that fails, write each half, until a row that cannot be written stands alone.

    Returns for each row the result of `write`, or of `refused(row, error)`. Raises StoreUnusable, which no
    row causes.
    """
    try:
        return list(await write(rows))
    except StoreUnusable:
        raise
    except Exception as error:  # noqa: BLE001 - the database may refuse a row with any error
        if len(rows) == 1:
            return [refused(rows[0], error)]
    half = len(rows) // 2
    return await apart(rows[:half], write, refused) + await apart(rows[half:], write, refused)
