"""Outbox relay: publishes tasks from the store when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog
from pydantic import ValidationError

from warren.bus.connection import Connection
from warren.bus.messages import due_message
from warren.bus.publisher import Publisher
from warren.bus.replies import Replies, result_message, undelivered_body
from warren.bus.retrying_publisher import publish_lightly
from warren.bus.topology import Names
from warren.errors import BrokerError, MessageRefused, QueueFull, StoreRefused, Unroutable
from warren.settings import Settings
from warren.store.outbox import Due, Outbox
from warren.support.failure import Failure, message_of, what_does_not_fit
from warren.support.loops import GrowingPause
from warren_schemas import Reason

log = structlog.get_logger(__name__)

BATCH: Final = 200  # tasks that are published at once
POLL: Final = 0.4  # seconds between two polls: a due task is published within a second
FULL_PAUSE: Final = 1.0  # seconds that an agent type is skipped after its queue was full
UNROUTABLE_PAUSE: Final = 5.0  # seconds that an agent type without a queue is skipped
LONGEST_PAUSE: Final = 60.0  # seconds between two polls, at most, while the store refuses them
PAUSE: Final = 1.0  # seconds until a publish that failed for another reason is tried again
DAMAGED_PAUSE: Final = 3600.0  # seconds until a row that could not be set aside is tried and logged again


class Relay:
    """Claims due rows, publishes them with confirms, and marks them. Any number of workers may run one."""

    def __init__(
        self, outbox: Outbox, publisher: Publisher, connection: Connection, settings: Settings
    ) -> None:
        self._outbox, self._publisher, self._connection = outbox, publisher, connection
        self._settings, self._names = settings, Names(settings.namespace)
        self._replies = Replies(settings)
        self._trouble = GrowingPause(POLL, LONGEST_PAUSE)
        self._left_out: dict[str, float] = {}
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Publish due tasks until `drain`."""
        try:
            while not self._stopping.is_set():
                await self._connection.ready()
                try:
                    due = await self._outbox.claim_due(BATCH, but_not=self._types_left_out())
                    await self._publish(due)
                except StoreRefused as error:
                    pause = self._trouble.failed()
                    log.error("relay.failed", error=str(error), again_in_s=pause)
                    await self._pause(pause)
                    continue
                self._trouble.worked()
                if len(due) < BATCH:
                    await self._pause(POLL)
        finally:
            self._stopped.set()

    async def drain(self, seconds: float) -> None:
        """Claim no more, and wait up to `seconds` for publications in work."""
        self._stopping.set()
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("relay.abandoned", reason="what was under way is tried again when its lease is over")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _types_left_out(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        self._left_out = {name: until for name, until in self._left_out.items() if until > now}
        return list(self._left_out)

    def _leave_out(self, agent_type: str, seconds: float) -> float:
        self._left_out[agent_type] = asyncio.get_running_loop().time() + seconds
        return seconds

    async def _publish(self, due: Sequence[Due]) -> None:
        pauses = await asyncio.gather(*(self._publish_one(one) for one in due))
        sent = [one for one, pause in zip(due, pauses, strict=True) if pause is None]
        if sent:
            await self._outbox.published(sent)
        for pause in {pause for pause in pauses if pause is not None}:
            refused = [one for one, its in zip(due, pauses, strict=True) if its == pause]
            await self._outbox.put_back(refused, pause)

    async def _publish_one(self, due: Due) -> float | None:
        """Publish one task. None if it is confirmed, else the seconds until the next try."""
        try:
            message = due_message(due, self._names, self._settings)
        except Exception as error:  # noqa: BLE001 - a damaged row must not stop the others
            return await self._set_aside(due, "invalid", _damage(error))
        try:
            await publish_lightly(self._publisher, message)
        except QueueFull:
            return self._leave_out(due.agent_type, FULL_PAUSE)
        except Unroutable as error:
            log.warning("relay.unroutable", task_id=str(due.task_id), error=str(error))
            return self._leave_out(due.agent_type, UNROUTABLE_PAUSE)
        except MessageRefused as error:
            return await self._set_aside(due, "rejected", Failure.told(type(error).__name__, str(error)))
        except BrokerError as error:
            log.warning("relay.waits", task_id=str(due.task_id), error=str(error))
            return PAUSE
        return None

    async def _set_aside(self, due: Due, reason: Reason, failure: Failure) -> float:
        """End a task that can never be published: it is dead, and its producer gets a reply.

        If the store refuses that as well, the row waits.
        """
        log.error("relay.set_aside", task_id=str(due.task_id), reason=reason, error=failure.message)
        try:
            await self._outbox.set_aside(due, reason, failure)
        except StoreRefused as refused:
            log.error("relay.refused", task_id=str(due.task_id), error=str(refused))
        else:
            await self._answer(due, failure)
        return DAMAGED_PAUSE

    async def _answer(self, due: Due, failure: Failure) -> None:
        reply_to = due.parcel.reply_to
        if not reply_to or not self._replies.allow(reply_to):
            return
        body = undelivered_body(due.task_id, due.attempts, failure.message)
        try:
            await self._publisher.publish(
                result_message(body, due.task_id, reply_to, due.parcel.correlation_id)
            )
        except BrokerError as error:
            log.warning("result.unwanted", task_id=str(due.task_id), error=str(error))


def _damage(error: Exception) -> Failure:
    told = what_does_not_fit(error) if isinstance(error, ValidationError) else message_of(error)
    return Failure.told("DamagedRow", f"the row in the store cannot be published: {told}")
