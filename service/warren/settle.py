"""Settling: what becomes of a task once its outcome is known. The acknowledgement is the last act."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID

import structlog
from pydantic import JsonValue

from warren.answers import Answers
from warren.bus import Message
from warren.bus_delivery import Delivery
from warren.bus_publisher import Publisher
from warren.errors import (
    BrokerError,
    FenceLost,
    MessageRefused,
    QueueFull,
    StoreRefused,
    Unroutable,
)
from warren.events import Events
from warren.loops import GrowingPause
from warren.outcome import (
    BREAKER_OPEN,
    Cancelled,
    Dead,
    Outcome,
    Released,
    RetryLater,
    Stale,
    Succeeded,
    Superseded,
)
from warren.publishing import LONGEST_PAUSE, PAUSE, publish_patiently
from warren.records import ended, setback, unwritable
from warren.settings import Settings
from warren.store_ledger import Entry, Ledger, Verdict
from warren.store_outbox import Outbox
from warren.topology import Names
from warren.wire import (
    LAST_IN_LINE,
    again,
    cancelled_body,
    dead_body,
    dead_message,
    failed_body,
    id_of_what_is_no_task,
    parcel_of,
    result_body,
)
from warren_schemas import State, Task

log = structlog.get_logger(__name__)


class Settler:
    """Makes an outcome durable, then acknowledges. One per worker.

    `declare` puts back exchanges and queues that somebody deleted.
    """

    def __init__(
        self,
        publisher: Publisher,
        answers: Answers,
        events: Events,
        settings: Settings,
        worker_id: str,
        declare: Callable[[], Awaitable[None]],
        ledger: Ledger | None,
    ) -> None:
        self._ledger = ledger
        self._outbox = Outbox(ledger) if ledger is not None else None
        self._publisher, self._answers = publisher, answers
        self._events, self._declare = events, declare
        self._settings, self._worker_id = settings, worker_id
        self._names = Names(settings.namespace)

    async def settle(
        self,
        task: Task,
        outcome: Outcome,
        deliveries: Sequence[Delivery],
        paused: Callable[[], Awaitable[None]] | None = None,
        run: Entry | None = None,
        *,
        has_row: bool = False,
    ) -> Outcome:
        """Settle every delivery of one task; `paused()` waits until no more are coming in.

        Where there is a ledger, the end of the `run` is written first; without a `run` it stands there
        already. `has_row`: the ledger has a row that says it runs.
        Gives the outcome that counts: `Superseded` for a run that was overtaken.

        Waits for the broker as long as it takes; cancelled before its end, everything is delivered again.
        """
        outcome = await self._record(run, task, outcome, deliveries, has_row=has_row)
        match outcome:
            case Superseded():
                await self.step_back(task.task_id, deliveries)
                return outcome
            case Succeeded():
                await self._succeed(task, outcome, deliveries)
            case Dead():
                await self._die(task, outcome, deliveries)
            case Cancelled():
                await self._tell_cancelled(task, outcome, deliveries)
            case Released():
                if not await self._release(task, outcome, deliveries, paused):
                    return outcome
            case RetryLater() | Stale():
                pass  # it stands in the store; the message here is not needed any more
        for delivery in tuple(deliveries):
            delivery.ack()
        return outcome

    def waits_for_the_ledger_alone(self, outcome: Outcome, deliveries: Sequence[Delivery]) -> bool:
        """Whether nothing but a row has to come before the acknowledgement: most succeed, and nobody asks."""
        return (
            self._ledger is not None
            and isinstance(outcome, Succeeded)
            and not self._settings.task_events
            and not any(delivery.properties.reply_to for delivery in deliveries)
        )

    def settle_in_a_group(
        self, run: Entry, outcome: Succeeded, deliveries: Sequence[Delivery], then: Callable[[Verdict], None]
    ) -> None:
        """Settle what waits for the ledger alone, as soon as its group is durable: `then(verdict)` is told.

        A run that was overtaken is still to step back, and an end that was refused is to be set aside.
        """
        assert self._ledger is not None
        self._ledger.finish_then(ended(run, outcome), partial(self._written, deliveries, then))

    def _written(
        self, deliveries: Sequence[Delivery], then: Callable[[Verdict], None], verdict: Verdict
    ) -> None:
        if verdict is Verdict.COUNTS:
            for delivery in deliveries:
                delivery.ack()
        then(verdict)

    async def step_back(self, task_id: UUID, deliveries: Sequence[Delivery]) -> None:
        """The task is somebody else's now. That we can say so means that our worker lives.

        The deliveries go back, and are looked up when they return: the one that took the task over may have
        died since, and what this run adopted may be its only message.
        """
        log.warning("task.superseded", task_id=str(task_id))
        if self._ledger is not None:
            await self._ledger.exonerate(task_id)
        await asyncio.gather(*(delivery.release() for delivery in deliveries))

    async def _succeed(self, task: Task, outcome: Succeeded, deliveries: Sequence[Delivery]) -> None:
        if any(delivery.properties.reply_to for delivery in deliveries):  # most want no answer
            result = result_body(task, outcome.result, outcome.attempts)
            await self._answers.send(task.task_id, result, outcome.attempts, deliveries)
        if self._settings.task_events:
            self.tell(task, "succeeded", {"attempts": outcome.attempts})

    async def _die(self, task: Task, dead: Dead, deliveries: Sequence[Delivery]) -> None:
        await self._bury(task.agent_type, dead, deliveries[0])
        await self._answers.send(task.task_id, failed_body(task, dead), dead.attempts, deliveries)
        details: dict[str, JsonValue] = {"attempts": dead.attempts, "error": dead.failure.error_type}
        self.tell(task, "dead", details, dead.reason)

    async def _tell_cancelled(self, task: Task, cancelled: Cancelled, deliveries: Sequence[Delivery]) -> None:
        body = cancelled_body(task.task_id, cancelled.attempts)
        await self._answers.send(task.task_id, body, cancelled.attempts, deliveries)
        self.tell(task, "cancelled", {"attempts": cancelled.attempts})

    async def _release(
        self,
        task: Task,
        released: Released,
        deliveries: Sequence[Delivery],
        paused: Callable[[], Awaitable[None]] | None,
    ) -> bool:
        """True: a fresh copy waits in the queue, and the deliveries are to be acknowledged."""
        if paused is not None and released.reason == BREAKER_OPEN:
            await self._wait(paused)
        self.tell(task, "released", {"attempts": released.attempts}, released.reason)
        if await self._requeue(task, released, deliveries[-1]):
            return True
        await asyncio.gather(*(delivery.release() for delivery in deliveries))
        return False

    async def _record(
        self,
        run: Entry | None,
        task: Task,
        outcome: Outcome,
        deliveries: Sequence[Delivery],
        *,
        has_row: bool,
    ) -> Outcome:
        """Make the outcome durable in the store, where there is one."""
        if self._ledger is None or run is None:
            return outcome
        match outcome:
            case Succeeded() | Dead():
                return await self._end(run, outcome)
            case RetryLater():
                return await self._postpone(run, task, outcome, deliveries[-1])
            case Cancelled():
                return outcome if await self._ledger.cancel(run) else Superseded()
            case Released() if has_row or not deliveries[-1].counted:
                # Without a row that says so, whoever gets it next would take it for one whose worker died:
                # classic queues cannot tell, quorum queues never forget, and a row would say that it runs.
                try:
                    await self._ledger.release(run)
                except FenceLost:
                    return Superseded()
        return outcome

    async def _end(self, run: Entry, outcome: Succeeded | Dead) -> Outcome:
        assert self._ledger is not None
        try:
            return outcome if await self._ledger.finish(ended(run, outcome)) else Superseded()
        except StoreRefused as error:
            return await self.set_aside(run, outcome.attempts, error)

    async def set_aside(self, run: Entry, attempts: int, error: StoreRefused) -> Dead | Superseded:
        """What becomes of a task whose end the store does not take: it is dead, and its row says so, if the
        store takes that.
        """
        assert self._ledger is not None
        dead = unwritable(attempts, error)
        try:
            return dead if await self._ledger.finish(ended(run, dead)) else Superseded()
        except StoreRefused:
            return dead

    async def _postpone(self, run: Entry, task: Task, later: RetryLater, delivery: Delivery) -> Outcome:
        assert self._outbox is not None
        parcel = parcel_of(delivery, task)
        try:
            await self._outbox.postpone(run, later.due_at, later.attempts, parcel, setback(later))
        except FenceLost:
            return Superseded()
        except StoreRefused as error:
            return await self.set_aside(run, later.attempts, error)
        return later

    async def _wait(self, paused: Callable[[], Awaitable[None]]) -> None:
        """Wait until a released task would not come straight back to this very consumer.

        Not for ever: half-open, the consumer waits for a probe, and meanwhile another worker may run it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.breaker_reset_timeout):
                await paused()

    async def settle_invalid(self, agent_type: str, dead: Dead, delivery: Delivery) -> None:
        """Settle a message that is no task. It may ask for an answer all the same, and gets one."""
        await self._bury(agent_type, dead, delivery)
        if delivery.properties.reply_to:
            task_id = id_of_what_is_no_task(delivery)
            await self._answers.send(task_id, dead_body(task_id, dead), dead.attempts, [delivery])
        log.warning("task.invalid", agent_type=agent_type, error=dead.failure.message)
        self._events.tell(
            "task",
            agent_type,
            "dead",
            reason=dead.reason,
            details={"message_id": delivery.properties.message_id, "error": dead.failure.message},
        )
        delivery.ack()

    def tell(
        self, task: Task, state: State, details: dict[str, JsonValue], reason: str | None = None
    ) -> None:
        """Publish an event about the task."""
        self._events.tell(
            "task",
            task.agent_type,
            state,
            reason=reason,
            details={"task_id": str(task.task_id), **details},
        )

    async def _requeue(self, task: Task, released: Released, delivery: Delivery) -> bool:
        """Put a task behind its peers. False: it keeps its place and must be given back instead.

        A delivery that is not live comes back by itself, and a fresh copy would be a second one; but not when
        its queue was deleted: then the fresh copy is the only one.
        """
        if delivery.comes_back and not (released.tried and delivery.is_live):
            return False
        priority = LAST_IN_LINE if released.probe else None
        message = again(
            task, delivery, self._names, self._settings, attempts=released.attempts, priority=priority
        )
        try:
            await self.publish_surely(message)
        except QueueFull:
            return False
        return True

    async def _bury(self, agent_type: str, dead: Dead, delivery: Delivery) -> None:
        """Publish a dead letter, or have the broker move the message where it does not take it from us.

        That is so when its limit of a message was lowered; the record is then in the store and the log.
        Raises MessageRefused for a message of a queue that has no dead-letter exchange.
        """
        letter = dead_message(delivery, dead, agent_type, self._names, self._worker_id)
        try:
            await self.publish_surely(letter)
        except MessageRefused as error:
            if delivery.queue != self._names.queue(agent_type):
                raise
            record = {name: value for name, value in letter.headers.items() if name.startswith("warren-")}
            log.error("dead_letter.refused", message_id=letter.message_id, error=str(error), **record)
            await delivery.reject()

    async def publish_surely(self, message: Message) -> None:
        """Publish, whatever it takes: queues that were deleted are declared again.

        Raises QueueFull and MessageRefused.
        """
        pauses = GrowingPause(PAUSE, LONGEST_PAUSE)
        while True:
            try:
                return await self.publish_patiently(message)
            except Unroutable as error:
                log.error("publish.unroutable", message_id=message.message_id, error=str(error))
            try:
                await self._declare()
            except BrokerError as error:
                log.warning("declare.waits", error=str(error))
            await asyncio.sleep(pauses.failed())

    async def publish_patiently(self, message: Message) -> None:
        """Publish, waiting for a broker that is away, blocked or refuses us for the time being.

        Raises QueueFull, Unroutable and MessageRefused.
        """
        await publish_patiently(self._publisher, message)
