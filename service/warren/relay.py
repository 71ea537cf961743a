"""The relay: publishes what waits in the store, when it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog
from pydantic import ValidationError

from warren.bus import Connection
from warren.bus_publisher import Publisher
from warren.errors import BrokerError, MessageRefused, PublishError, QueueFull, Unroutable
from warren.failure import Failure
from warren.settings import Settings
from warren.settle import publish_lightly
from warren.store_outbox import Due, Outbox
from warren.topology import Names
from warren.wire import due_message, result_message, undelivered_body

log = structlog.get_logger(__name__)

BATCH: Final = 200  # tasks that are published at once
POLL: Final = 0.4  # seconds between two looks: what is due leaves within a second
FULL_PAUSE: Final = 1.0  # seconds that an agent type is left out after its queue was full
UNROUTABLE_PAUSE: Final = 5.0  # … and after there was no queue for it
PAUSE: Final = 1.0  # seconds until a publish that failed otherwise is tried again
DAMAGED_PAUSE: Final = 3600.0  # seconds until a body that cannot be read is complained about again


class Relay:
    """Claims due rows, publishes them with confirms, marks them. Any number of workers may run one."""

    def __init__(
        self, outbox: Outbox, publisher: Publisher, connection: Connection, settings: Settings
    ) -> None:
        self._outbox, self._publisher, self._connection = outbox, publisher, connection
        self._settings, self._names = settings, Names(settings.namespace)
        self._left_out: dict[str, float] = {}
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Publish what is due, until `drain`."""
        try:
            while not self._stopping.is_set():
                await self._connection.ready()
                due = await self._outbox.claim_due(BATCH, but_not=self._types_left_out())
                await self._publish(due)
                if len(due) < BATCH:
                    await self._pause()
        finally:
            self._stopped.set()

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, and give what is under way this long."""
        self._stopping.set()
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("relay.abandoned", reason="what was under way is tried again when its lease is over")

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL):
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
        """Publish one. None when it is confirmed, else the seconds until it is worth another try."""
        try:
            await publish_lightly(self._publisher, due_message(due, self._names, self._settings))
        except QueueFull:
            return self._leave_out(due.agent_type, FULL_PAUSE)
        except Unroutable as error:
            log.warning("relay.unroutable", task_id=str(due.task_id), error=str(error))
            return self._leave_out(due.agent_type, UNROUTABLE_PAUSE)
        except MessageRefused as error:
            log.error("relay.refused", task_id=str(due.task_id), error=str(error))
            await self._set_aside(due, error)
            return None
        except BrokerError as error:
            log.warning("relay.waits", task_id=str(due.task_id), error=str(error))
            return PAUSE
        except ValidationError as error:
            log.error("relay.damaged", task_id=str(due.task_id), error=str(error))
            return DAMAGED_PAUSE
        return None

    async def _set_aside(self, due: Due, refusal: MessageRefused) -> None:
        """End a task that the broker never takes: dead, in the store alone, and its producer is answered."""
        await self._outbox.set_aside(due, Failure.told(type(refusal).__name__, str(refusal)))
        if due.parcel.reply_to:
            body = undelivered_body(due.task_id, due.attempts, str(refusal))
            answer = result_message(body, due.task_id, due.parcel.reply_to, due.parcel.correlation_id)
            try:
                await self._publisher.publish(answer)
            except PublishError as error:
                log.warning("result.unwanted", task_id=str(due.task_id), error=str(error))
