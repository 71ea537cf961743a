"""A client's access to the store, which is opened at first use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

import structlog

from warren.bus.connection import Message
from warren.bus.messages import due_message, kept_headers
from warren.bus.topology import Names
from warren.errors import BrokerError, ConfigurationError, IdempotencyConflict, StoreUnavailable
from warren.settings import Settings
from warren.store.control import Board
from warren.store.database import Store
from warren.store.outbox import Due, Entrance
from warren.store.requests import FirstRequest
from warren.store.stored_message import Parcel
from warren.store.task_records import Archive
from warren_schemas import Result, Task

log = structlog.get_logger(__name__)

POLL: Final = 0.1  # seconds between two looks for a result, growing
LONGEST_POLL: Final = 2.0


class ClientStore:
    """Reads results, and lets tasks with an idempotency key in once.

    Raises StoreUnavailable, StoreUnusable, or ConfigurationError where the settings name no store.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._names = settings, Names(settings.namespace)
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._store: Store | None = None

    async def close(self) -> None:
        """Close the store, if it was opened."""
        await self._stack.aclose()

    async def archive(self) -> Archive:
        """The store's records of tasks."""
        return Archive(await self._opened())

    async def board(self) -> Board:
        """The store's cancellations and pauses."""
        return Board(await self._opened())

    async def _opened(self) -> Store:
        async with self._opening:
            if self._store is None:
                store = Store.of(self._settings)
                if store is None:
                    raise ConfigurationError("WARREN_STORE_URL is `none`: nothing is remembered")
                self._store = await self._stack.enter_async_context(store)
        return self._store

    async def send_once(
        self, task: Task, message: Message, key: str, send: Callable[[Message], Awaitable[None]]
    ) -> Task:
        """Send a task, or return the one that came with the same user and key before.

        The row is written first. A refusal deletes it, unless the message was sent before: then it is unknown
        whether the message arrived, and a relay publishes it. Raises IdempotencyConflict.
        """
        entrance = Entrance(await self._opened())
        headers = kept_headers(message.headers)
        parcel = Parcel(message.body, headers, message.priority, message.reply_to, message.correlation_id)
        while True:
            entered = await entrance.enter(task.task_id, task.agent_type, task.user_id, key, parcel)
            if entered is not None:
                break
            await asyncio.sleep(POLL)  # another process publishes it: nothing here to be woken by
        if isinstance(entered, FirstRequest):
            return await _first(entered, task, message.body, key)
        try:
            await send(due_message(entered, self._names, self._settings))
        except BrokerError as error:
            if not error.may_have_arrived:
                await entrance.withdraw(entered)
                raise
            log.warning("submit.unconfirmed", task_id=str(task.task_id), error=str(error))
            await _hand_over(entrance, entered)
            return task
        await entrance.published(entered)
        return task

    async def result_of(self, task: Task) -> Result:
        """Wait for the result of a task that another client submitted."""
        archive, pause = await self.archive(), POLL
        while True:
            record = await archive.task(task.task_id)
            if record is not None and record.finished_at is not None:
                return record.as_result()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL)


async def _first(first: FirstRequest, task: Task, body: bytes, key: str) -> Task:
    """The task that has the key. Raises IdempotencyConflict if the new task differs from it."""
    if not await first.is_the_same(task.agent_type, body):
        raise IdempotencyConflict(key, str(first.task_id))
    if first.body is None:  # it was discarded
        return task.model_copy(update={"task_id": first.task_id})
    return Task.model_validate_json(first.body)


async def _hand_over(entrance: Entrance, due: Due) -> None:
    try:
        await entrance.hand_over(due)
    except StoreUnavailable as error:
        hint = "a relay publishes the task when the lease of its row is over"
        log.warning("submit.left", task_id=str(due.task_id), error=str(error), hint=hint)
