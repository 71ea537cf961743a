"""Dead-letter intake (the desk): moves dead letters from the dead queue into the store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid5

import structlog
from pydantic import ValidationError

from warren.bus.connection import Connection
from warren.bus.consumer import Consumer
from warren.bus.delivery import Delivery
from warren.bus.messages import dispatch_of, kept_headers
from warren.bus.topology import Names
from warren.store.dead_letter_rows import Letter, Letters
from warren.store.ledger import Ledger
from warren.store.stored_message import Parcel
from warren.support.loops import GrowingPause
from warren_schemas import AMQP_PRIORITY, REPLAY, DeadLetterHeaders, Task

log = structlog.get_logger(__name__)

PREFETCH: Final = 200  # letters, in addition to the worker's tasks: letters do not run
BATCH_BYTES: Final = 8 * 1024 * 1024  # bytes of bodies in one transaction
HELD: Final = 60.0  # seconds that a letter is held after the database refused it; doubles each time
LONGEST_HELD: Final = 3600.0
NO_TASK: Final = UUID("f1a6a0d0-6c1c-5e0a-9d53-6c9a7c0d7e11")  # namespace of ids for messages without one


class Desk:
    """Consumes the dead queue: writes letters, then acknowledges. Any number of workers may run one."""

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        names: Names,
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        self._letters, self._ledger = Letters(ledger.store), ledger
        self._consumer = Consumer(connection, names.dead, self._on_delivery, declare)
        self._arrived: list[Delivery] = []
        self._writing: asyncio.Task[None] | None = None
        self._pauses: dict[str, GrowingPause] = {}
        self._held: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Consume until cancelled."""
        self._consumer.want(PREFETCH)
        await self._consumer.run()

    async def drain(self, seconds: float) -> None:
        """Stop consuming, and wait up to `seconds` for the write in work. The broker takes the rest back."""
        self._consumer.want(0)
        under_way = [task for task in (self._writing,) if task is not None]
        if under_way:
            await asyncio.wait(under_way, timeout=seconds)
        for task in (*under_way, *self._held):
            task.cancel()
        await self._consumer.close()

    def _on_delivery(self, delivery: Delivery) -> None:
        self._arrived.append(delivery)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="dead-letter desk")
            self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing = None
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.error("desk.failed", exc_info=error)

    async def _write(self) -> None:
        """Write the letters that have arrived, one transaction after the other. Batches grow under load."""
        while self._arrived:
            batch = self._next_batch()
            try:
                await self._take_in(batch)
            except Exception as error:  # noqa: BLE001 - the database may refuse a letter with any error
                log.warning("desk.one_by_one", letters=len(batch), error=str(error))
                await self._take_in_singly(batch)

    def _next_batch(self) -> list[Delivery]:
        batch, size = list[Delivery](), 0
        while self._arrived and len(batch) < PREFETCH and size < BATCH_BYTES:
            batch.append(self._arrived.pop(0))
            size += len(batch[-1].body)
        return batch

    async def _take_in(self, batch: Sequence[Delivery]) -> None:
        """Write the letters, waiting while the store is away, and only then acknowledge them."""
        letters = [letter_of(delivery) for delivery in batch]
        await self._ledger.surely(lambda connection: self._letters.write(connection, letters))
        for delivery in batch:
            delivery.ack()

    async def _take_in_singly(self, batch: Sequence[Delivery]) -> None:
        """Write each letter alone, so that a refused one does not block the others."""
        for delivery in batch:
            try:
                await self._take_in([delivery])
            except Exception as error:  # noqa: BLE001 - it is logged, kept, and tried again later
                self._ledger.refused += 1
                message_id = delivery.properties.message_id
                pause = self._pauses.setdefault(str(message_id), GrowingPause(HELD, LONGEST_HELD)).failed()
                log.error("desk.refused", message_id=message_id, error=str(error), again_in_s=pause)
                held = asyncio.create_task(
                    _give_back_later(delivery, pause), name=f"dead letter {message_id}"
                )
                self._held.add(held)
                held.add_done_callback(self._held.discard)


async def _give_back_later(delivery: Delivery, pause: float) -> None:
    await asyncio.sleep(pause)
    await delivery.release()


def letter_of(delivery: Delivery) -> Letter:
    """The letter in a message of the dead queue. It accepts every message, from any program."""
    record, task, now = (
        DeadLetterHeaders.from_headers(delivery.headers),
        _task_in(delivery),
        datetime.now(UTC),
    )
    last = record.last_failed_at or now
    told = record.error_message or f"dead-lettered by the broker ({record.reason})"
    properties = delivery.properties
    return Letter(
        task_id=task.task_id if task else _id_of(delivery),
        life=str(delivery.headers.get(REPLAY, "")),
        dispatch=dispatch_of(delivery.headers),
        agent_type=task.agent_type if task else delivery.routing_key,
        user_id=task.user_id if task else "default",
        message_id=str(properties.message_id or ""),
        parcel=Parcel(
            body=delivery.body,
            headers=kept_headers(delivery.headers),
            priority=properties.priority or AMQP_PRIORITY[task.priority if task else "medium"],
            reply_to=properties.reply_to,
            correlation_id=properties.correlation_id,
        ),
        reason=record.reason,
        error_type=record.error_type or "DeadLettered",
        error_message=told,
        traceback=record.traceback or "",
        fingerprint=record.fingerprint or record.reason,
        attempts=record.attempts,
        worker_id=record.worker,
        first_failed_at=(record.first_failed_at or last).timestamp(),
        last_failed_at=last.timestamp(),
        created_at=task.created_at.timestamp() if task and task.created_at else None,
    )


def _task_in(delivery: Delivery) -> Task | None:
    try:
        return Task.model_validate_json(delivery.body)
    except ValidationError:
        return None  # an invalid task is a common reason for a dead letter


def _id_of(delivery: Delivery) -> UUID:
    """An id for a message that is not a task: its message id, or one derived from its content."""
    message_id = str(delivery.properties.message_id or "")
    try:
        return UUID(message_id)
    except ValueError:
        return uuid5(NO_TASK, f"{message_id} {hashlib.sha256(delivery.body).hexdigest()}")
