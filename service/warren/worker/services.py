"""Store services of a worker: ledger, outbox relay, scheduler, dead-letter intake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Final, Self

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from warren.agents.app import AgentSpec
from warren.bus.connection import Connection
from warren.bus.publisher import Publisher
from warren.bus.topology import Names
from warren.errors import StoreUnavailable
from warren.settings import Settings
from warren.store.control import Board
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.outbox import Outbox
from warren.store.schedules import Schedules
from warren.support.loops import Loops
from warren.worker.dead_letter_intake import Desk
from warren.worker.in_flight import Runs
from warren.worker.relay import Relay
from warren.worker.scheduler import Scheduler

log = structlog.get_logger(__name__)

# Seconds after which a first run gets a row; shorter runs have none. The row shows that the task runs, and
# that it ran if its worker dies.
LONG: Final = 5.0
LOOK: Final = 1.0  # seconds between two checks for such runs


class Remembering:
    """An open store, and the loops of one worker that use it."""

    def __init__(self, store: Store, ledger: Ledger, settings: Settings) -> None:
        self.ledger, self.board = ledger, Board(store)
        self._settings = settings
        self._relay: Relay | None = None
        self._desk: Desk | None = None

    @classmethod
    async def open(
        cls,
        stack: AsyncExitStack,
        settings: Settings,
        worker_id: str,
        on_change: Callable[[bool, str], None],
    ) -> Self | None:
        """Open the store, and wait while it is not reachable. None if the settings name no store.

        `on_change(up, reason)` is called when it goes away and comes back. Raises StoreUnusable.
        """
        store = Store.of(settings)
        if store is None:
            return None
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=settings.reconnect_max_delay),
            before_sleep=_tell,
        )
        await retrying(stack.enter_async_context, store)
        return cls(store, Ledger(store, worker_id, on_change), settings)

    def start(
        self,
        loops: Loops,
        agents: Iterable[AgentSpec],
        publisher: Publisher,
        publishing: Connection,
        consuming: Connection,
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        """Start the loops."""
        self._relay = Relay(Outbox(self.ledger), publisher, publishing, self._settings)
        loops.start("relay", self._relay.run())
        schedules = Schedules(self.ledger.store, self.ledger.surely)
        loops.start("scheduler", Scheduler(schedules, agents).run())
        if self._settings.dead_letter_desk:
            self._desk = Desk(consuming, self.ledger, Names(self._settings.namespace), declare)
            loops.start("dead-letter desk", self._desk.run())

    async def drain(self, seconds: float) -> None:
        """Stop the loops, and wait up to `seconds` for the work of each."""
        for loop in (self._relay, self._desk):
            if loop is not None:
                await loop.drain(seconds)


async def note_long(runs: Runs, ledger: Ledger) -> None:
    """Record long runs, and write signs of life for runs of which another worker may have a copy, for ever.

    The broker may give a message that it took back to another worker, which must know that this run lives.
    """
    while True:
        await asyncio.sleep(LOOK)
        contested = [run for run in runs if run.is_adrift or (run.is_watched and run.began is not None)]
        long = [
            run.memory
            for run in {*runs.running_since(time.monotonic() - LONG), *contested}
            if not run.memory.has_row
        ]
        for memory in long:
            memory.has_row = True  # before the write: a run released during it must say so in its row
        if long:
            await ledger.note_running([memory.run for memory in long])
        if contested:
            await ledger.sign_of_life([run.memory.run for run in contested])


def _tell(state: RetryCallState) -> None:
    log.warning("store.awaited", error=str(state.outcome and state.outcome.exception()))
