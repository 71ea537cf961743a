"""Consumer of the ageing queue: raises the priority of tasks that waited one step, or ends expired ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import structlog

from warren.bus.connection import Connection
from warren.bus.consumer import Consumer
from warren.bus.delivery import Delivery
from warren.bus.messages import again, attempts_of, decode, promoted
from warren.bus.retrying_publisher import REFUSALS, RetryingPublisher
from warren.bus.topology import Names
from warren.errors import InvalidTask, MessageRefused, QueueFull, Unroutable
from warren.settings import Settings
from warren.support.failure import Failure
from warren.support.loops import GrowingPause
from warren.worker.committer import Committer
from warren.worker.outcome import Dead, Promoted, Stale
from warren.worker.settlement import Planner, Subject
from warren_schemas import AGENT_TYPE_PATTERN, REASON, Reason, Task

log = structlog.get_logger(__name__)

PREFETCH: Final = 10  # in addition to the worker's tasks; few, because they wait here for a full queue
# Seconds before a task is published again to a full queue: short, because it competes with producers.
PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
# Seconds before a message that could not be handled goes back to its queue.
REST: Final = 30.0
# Additional places, to replace those of messages that rest or wait for a full queue.
LENT: Final = 200


class Ageing:
    """Consumes the ageing queue: each task is published again, confirmed, then acknowledged."""

    def __init__(
        self,
        connection: Connection,
        publisher: RetryingPublisher,
        planner: Planner,
        committer: Committer,
        settings: Settings,
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        self._publisher, self._planner, self._committer = publisher, planner, committer
        self._settings, self._declare = settings, declare
        self._names = Names(settings.namespace)
        self._consumer = Consumer(connection, self._names.ageing, self._on_delivery, declare)
        self._handlers: set[asyncio.Task[None]] = set()
        self._waiting, self._draining = 0, False

    async def run(self) -> None:
        """Consume until cancelled."""
        self._feed()
        await self._consumer.run()

    async def drain(self, seconds: float) -> None:
        """Stop consuming, and wait up to `seconds` for messages in work. The broker takes the rest back."""
        self._draining = True
        self._consumer.want(0)
        if self._handlers:
            await asyncio.wait(tuple(self._handlers), timeout=seconds)
        for handler in tuple(self._handlers):
            handler.cancel()
        await self._consumer.close()

    def _on_delivery(self, delivery: Delivery) -> None:
        handler = asyncio.create_task(self._handle(delivery), name="ageing")
        self._handlers.add(handler)
        handler.add_done_callback(self._handled)

    def _handled(self, handler: asyncio.Task[None]) -> None:
        self._handlers.discard(handler)
        if not handler.cancelled() and (error := handler.exception()) is not None:
            log.error("ageing.failed", exc_info=error)  # its message goes back when the channel closes

    @contextmanager
    def _place_lent(self) -> Iterator[None]:
        """Lend the place of a message that waits here to another, so that it blocks no place."""
        self._waiting += 1
        self._feed()
        try:
            yield
        finally:
            self._waiting -= 1
            self._feed()

    def _feed(self) -> None:
        if not self._draining:
            self._consumer.want(PREFETCH + min(self._waiting, LENT))

    async def _handle(self, delivery: Delivery) -> None:
        """Handle one message. After an error, a refusal or a bug of ours, it rests and then goes back."""
        try:
            await self._take(delivery)
        except Exception as error:
            log.exception(
                "ageing.failed",
                message_id=delivery.properties.message_id,
                error=str(error),
                hint=f"the message goes back to {self._names.ageing} in {REST:g} s",
            )
            with self._place_lent():
                await asyncio.sleep(REST)
            await delivery.release()

    async def _take(self, delivery: Delivery) -> None:
        if REASON in delivery.headers:
            # A dead letter was moved to a task queue by hand and has expired there. The exchange has sent a
            # copy to the dead queue as well. That copy is kept, and this one is acknowledged.
            log.warning("ageing.left_to_dead", message_id=delivery.properties.message_id)
            left = Subject(self._agent_type_of(delivery), None, [delivery])
            self._committer.hand_over(self._planner.plan(Stale(), left))
            return
        try:
            task = decode(delivery, self._settings)
        except InvalidTask as error:
            agent_type = self._agent_type_of(delivery)
            log.warning("task.invalid", agent_type=agent_type, error=str(error))
            await self._bury(Subject(agent_type, None, [delivery]), "invalid", str(error))
            return
        if task.expires_at is not None and task.expires_at <= datetime.now(UTC):
            subject = Subject(task.agent_type, task, [delivery])
            await self._bury(subject, "expired", f"expired at {task.expires_at.isoformat()}")
            return
        await self._send_back(task, delivery)

    async def _send_back(self, task: Task, delivery: Delivery) -> None:
        subject = Subject(task.agent_type, task, [delivery])
        priority = promoted(delivery.properties.priority, task)
        message = again(
            task,
            delivery,
            self._names,
            self._settings,
            attempts=attempts_of(delivery.headers),
            priority=priority,
        )
        declared = False
        pauses = GrowingPause(PAUSE, LONGEST_PAUSE)
        while True:
            try:
                await self._publisher.publish(message, raises=(*REFUSALS, Unroutable))
            except QueueFull:
                await self._wait_for_room(pauses.failed())
            except MessageRefused as error:
                await self._bury(subject, "rejected", str(error))
                return
            except Unroutable:
                if not declared:  # the exchange may be missing
                    await self._declare()
                    declared = True
                    continue
                await self._bury(
                    subject, "unknown_agent", f"no queue takes agent type {task.agent_type!r} any more"
                )
                return
            else:
                await self._committer.settle(self._planner.plan(Promoted(priority), subject))
                return

    async def _wait_for_room(self, pause: float) -> None:
        if pause < LONGEST_PAUSE:
            await asyncio.sleep(pause)
            return
        with self._place_lent():
            await asyncio.sleep(pause)

    async def _bury(self, subject: Subject, reason: Reason, message: str) -> None:
        dead = _dead(reason, subject.deliveries[0], message)
        await self._committer.settle(self._planner.plan(dead, subject))

    def _agent_type_of(self, delivery: Delivery) -> str:
        """The agent type of an unreadable message, from the queue that it came from."""
        agent_type = self._names.agent_type(str(delivery.headers.get("x-first-death-queue")))
        return agent_type if re.fullmatch(AGENT_TYPE_PATTERN, agent_type) else "unknown"


def _dead(reason: Reason, delivery: Delivery, message: str) -> Dead:
    now = datetime.now(UTC)
    kinds = {"invalid": "InvalidTask", "expired": "Expired", "rejected": "MessageRefused"}
    kind = kinds.get(reason, "UnknownAgentType")
    return Dead(reason, Failure.told(kind, message), attempts_of(delivery.headers), now, now)
