"""The client: submit tasks, await their results, listen to events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID, uuid4

import structlog
from pydantic import JsonValue

from warren.bus.connection import Connection, Message
from warren.bus.consumer import Consumer
from warren.bus.delivery import Delivery
from warren.bus.messages import task_message
from warren.bus.publisher import Publisher
from warren.bus.subscription import Subscription
from warren.bus.topology import Names, Queue, Topology, exchanges
from warren.client.answers import Awaited
from warren.client.control import Cancellation, ClientControl
from warren.client.store import ClientStore
from warren.client.tasks import body_of, make_task
from warren.errors import (
    BrokerError,
    BrokerNotFound,
    MessageTooLarge,
    PublishTimeout,
    QueueFull,
    ResultTimeout,
    TaskFailed,
    UnknownAgentType,
    Unroutable,
    WarrenError,
)
from warren.fleet.event_reader import EventReader
from warren.settings import Settings
from warren.store.task_records import TaskRecord
from warren.support.loops import Loops
from warren.support.refusals import Refusals
from warren.support.tracing import Tracing
from warren_schemas import Event, Result, Task

log = structlog.get_logger(__name__)

IN_FLIGHT: Final = 500  # unconfirmed publishes at once
REPLIES_EXPIRE: Final = 300_000  # milliseconds that results wait for a client that lost its connection
REPLIES_PREFETCH: Final = 1000
LISTENED: Final = 10_000  # events that wait for a listener that takes its time
FULL_PAUSE: Final = 0.2  # seconds before a full queue is tried again


@dataclass(frozen=True, slots=True)
class Submission:
    """The outcome of one publish of many: the task is confirmed if `error` is None."""

    task: Task
    error: WarrenError | None = None


class Client:
    """A producer's connection to Warren. An async context manager.

        async with Client() as client:
            task = await client.submit("summarise", {"url": "https://example.com"})
            summary = await client.run("summarise", {"url": "https://example.com"}, timeout=60)

    The broker is `url`, else `WARREN_AMQP_URL`; either names one host or several nodes of one cluster,
    `amqp://user:password@host1,host2/vhost`, which are tried in random order. Entering raises
    BrokerNotFound without either, BrokerUnavailable when nothing answers, AccessRefused when the broker
    refuses us. A connection that is lost later is opened again by itself; publishes wait for it.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        if url is None and self.settings.amqp_url is not None:
            url = self.settings.amqp_url.get_secret_value()
        if url is None:
            raise BrokerNotFound("no broker: pass its URL to Client(...) or set WARREN_AMQP_URL")
        name = f"client-{uuid4().hex[:12]}"
        self._names = Names(self.settings.namespace)
        self._publishing = Connection(self.settings, url, f"{name} publishing", self._prepare)
        self._consuming = Connection(self.settings, url, f"{name} consuming")
        self._publisher = Publisher(self._publishing)
        self._tracing = Tracing.of(self.settings, self._names.tasks)
        self._loops = Loops()
        self._replies = Queue(
            f"{self._names.replies}{name}",
            {"x-queue-type": "classic", "x-expires": REPLIES_EXPIRE},
        )
        self._awaited = Awaited()
        self._opening = asyncio.Lock()
        self._store = ClientStore(self.settings)
        self._control = ClientControl(self._store, self._publisher, self.settings)
        self._consumes = False
        self._answers: Consumer | None = None

    async def __aenter__(self) -> Self:
        await self._publishing.open()
        await self._loops.__aenter__()
        self._loops.start("publishing connection", self._publishing.supervise())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._loops.stop()
        if self._answers is not None:
            await self._answers.close()  # before its queue goes, or the library warns of a lost consumer
            await self._delete(self._replies.name)
        await self._consuming.close()
        await self._publishing.close()
        await self._store.close()

    async def submit(
        self, agent_type: str, payload: JsonValue, *, reply_to: str | None = None, **options: Any
    ) -> Task:
        """Submit one task and return it once the broker has confirmed it.

        `options` are the task's optional fields: `priority`, `user_id`, `expires_at`, `not_before`,
        `timeout_s`, `metadata`, `task_id`, …, and for a later time `delay` (seconds, or a timedelta) or
        `run_at` (a datetime with a time zone).

        With an `idempotency_key`, a second submit of the same user, key, agent type and payload makes no
        second task and returns the first one; with another type or payload it raises IdempotencyConflict.
        That needs a store, the same one for every producer that shares keys; keys are
        forgotten when the task is pruned.

        Raises pydantic.ValidationError for a field that makes no sense, InvalidTask for a text that JSON
        cannot carry, QueueFull, UnknownAgentType, MessageTooLarge, PublishTimeout or BrokerUnavailable; with
        a key also IdempotencyConflict, StoreUnavailable, StoreUnusable, or ConfigurationError where the
        settings name no store. With a key PublishTimeout is not raised: the task is in the store, and a
        worker's relay publishes it.
        """
        return await self._accept(make_task(agent_type, payload, **options), reply_to)

    async def submit_many(self, tasks: Iterable[Task]) -> list[Submission]:
        """Submit many tasks with up to 500 publishes in flight; the answer has their order.

        The error of one task, as `submit` would raise it, is in its submission and stops no other task.
        """
        tasks = list(tasks)
        submissions: list[Submission | None] = [None] * len(tasks)
        pending = iter(enumerate(tasks))

        async def send_on() -> None:
            for index, task in pending:
                submissions[index] = await self._try(task)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT, len(tasks))):
                group.create_task(send_on())
        return [submission for submission in submissions if submission is not None]

    async def run(
        self, agent_type: str, payload: JsonValue, *, timeout: float | None = None, **options: Any
    ) -> JsonValue:
        """Submit one task and await its result, `timeout` seconds at most (None: as long as it takes).

        Raises TaskFailed when the task ends dead or cancelled, ResultTimeout, InvalidResult for an answer
        that cannot be read, and what `submit` raises.
        """
        task = make_task(agent_type, payload, **options)
        try:
            async with asyncio.timeout(timeout):
                result = await self.result_of(task)
        except TimeoutError as error:
            raise ResultTimeout(f"no result of task {task.task_id} within {timeout:g} s") from error
        if result.status != "succeeded":
            failure = result.error
            raise TaskFailed(
                str(task.task_id),
                result.status,
                failure.type if failure else "",
                failure.message if failure else "",
                (failure.reason or "") if failure else "",
            )
        return result.result

    async def result_of(self, task: Task) -> Result:
        """Submit the task and await its `Result`, with any status. If the queue is full, wait for room.

        Answers arrive at least once. A second answer, or one without a waiter, is dropped.
        """
        await self._listen()
        with self._awaited.result_of(str(task.task_id)) as future:
            accepted = await self._accept_patiently(task, self._replies.name)
            if accepted.task_id != task.task_id:
                return await self._store.result_of(accepted)  # the first submitter gets the answer
            return await self._first(future)

    async def _first(self, future: asyncio.Future[Result]) -> Result:
        """The result, or the error of the loop that should have brought it."""
        watching = asyncio.create_task(self._loops.watch())
        waiting: set[asyncio.Future[Any]] = {future, watching}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                watching.result()
            return await asyncio.shield(future)
        finally:
            watching.cancel()

    async def status(self, task_id: UUID | str) -> str | None:
        """The task's status in the store: running, released, succeeded, dead, cancelled.

        None for a task without a row: it waits, runs for the first time, or does not exist.
        Raises StoreUnavailable, StoreUnusable, or ConfigurationError where the settings name no store.
        """
        return await (await self._store.archive()).status(UUID(str(task_id)))

    async def result(self, task_id: UUID | str) -> TaskRecord | None:
        """Everything that the store knows of a task, its result included; None and raises like `status`."""
        return await (await self._store.archive()).task(UUID(str(task_id)))

    async def events(self, pattern: str = "#") -> AsyncIterator[Event]:
        """Events whose routing key fits the pattern (`health.#`, `task.*.dead`), from now on, for ever.

        Events that are published while the connection is lost are missed, and the oldest of more than
        10,000 that wait to be taken.
        """
        async with self._listening(pattern) as arrived:
            while True:
                yield await arrived.get()

    async def cancel(self, task_id: UUID | str, *, wait: float = 3.0) -> Cancellation:
        """Cancel a task, wherever it is: waiting, delayed or running. An ended task stays as it ended.

        The store decides, and so needs to be the workers' one; they are told as well. For `wait` seconds it
        waits to hear from a worker that has ended the task. Raises StoreUnavailable, StoreUnusable,
        ConfigurationError where the settings name no store, or BrokerUnavailable.
        """
        async with self._listening("task.*.cancelled") as arrived:
            return await self._control.cancel(UUID(str(task_id)), arrived, wait)

    async def pause(self, agent_type: str) -> bool:
        """Have the fleet stop running an agent type, until `resume`. False: it was paused already.

        What runs goes on to its end. Raises like `cancel`.
        """
        return await self._control.pause(agent_type)

    async def resume(self, agent_type: str) -> bool:
        """Have the fleet run an agent type again. False: it was not paused. Raises like `cancel`."""
        return await self._control.resume(agent_type)

    # -- below the surface ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _listening(self, pattern: str) -> AsyncIterator[asyncio.Queue[Event]]:
        """Events that fit the pattern, from the moment that this is entered."""
        await self._open_consuming()
        arrived: asyncio.Queue[Event] = asyncio.Queue(LISTENED)
        reader, missed = EventReader(), Refusals("event.missed")

        def keep(delivery: Delivery) -> None:
            delivery.ack()
            event = reader.read(delivery)
            if event is None:
                return
            if arrived.full():
                arrived.get_nowait()
                missed.note(f"the listener has {LISTENED} events before it and takes none")
            arrived.put_nowait(event)

        prefix = f"{self.settings.namespace}.listener"
        subscription = Subscription(self._consuming, self._names.events, [pattern], prefix, keep)
        await subscription.declare()
        taking_in = self._loops.start(f"listener {pattern}", subscription.run())
        try:
            yield arrived
        finally:
            taking_in.cancel()
            await asyncio.gather(taking_in, return_exceptions=True)  # the queue is deleted with its consumer

    async def _prepare(self, connection: Connection) -> None:
        """Declare the exchanges. A producer without the permission to declare goes on without."""
        if not await connection.has_exchange(self._names.tasks):
            await connection.declare(Topology(exchanges(self._names), (), ()))

    async def _delete(self, queue: str) -> None:
        try:
            await self._consuming.delete_queue(queue)
        except BrokerError as error:
            log.info("queue.left", queue=queue, error=str(error))  # it goes or expires by itself

    async def _try(self, task: Task) -> Submission:
        try:
            return Submission(await self._accept(task, None))
        except WarrenError as error:
            return Submission(task, error)

    async def _accept(self, task: Task, reply_to: str | None) -> Task:
        """Send a task, or return the one that was submitted with its idempotency key before."""
        if self._tracing is None:
            return await self._accept_with({}, task, reply_to)
        with self._tracing.publishing(task.agent_type, task.task_id) as headers:
            return await self._accept_with(headers, task, reply_to)

    async def _accept_with(self, headers: Mapping[str, str], task: Task, reply_to: str | None) -> Task:
        message = task_message(
            task,
            self._names,
            self.settings,
            body=body_of(task),
            headers=dict(headers),
            reply_to=reply_to,
            correlation_id=str(task.task_id) if reply_to else None,
        )
        self._check_size(task, message)
        if task.idempotency_key is None:
            await self._send(task, message)
            return task
        return await self._store.send_once(
            task, message, task.idempotency_key, lambda message: self._send(task, message)
        )

    async def _accept_patiently(self, task: Task, reply_to: str) -> Task:
        while True:
            try:
                return await self._accept(task, reply_to)
            except QueueFull:
                await asyncio.sleep(FULL_PAUSE)

    def _check_size(self, task: Task, message: Message) -> None:
        if len(message.body) > self.settings.max_payload_bytes:
            raise MessageTooLarge(
                f"task {task.task_id} has {len(message.body)} bytes; max_payload_bytes is "
                f"{self.settings.max_payload_bytes}: store the data elsewhere and send where it is"
            )

    async def _send(self, task: Task, message: Message) -> None:
        try:
            await self._publisher.publish(message)
        except PublishTimeout:
            raise
        except BrokerError as error:
            if error.may_have_arrived:
                raise PublishTimeout(
                    f"task {task.task_id} was sent, its confirm was lost, a second copy was refused: {error}"
                ) from error
            self._explain(task, error)
            raise

    def _explain(self, task: Task, error: BrokerError) -> None:
        """Translate a refusal of the broker into an error about the task."""
        if isinstance(error, Unroutable):
            raise UnknownAgentType(
                f"no queue takes agent type {task.agent_type!r}: "
                "start a worker that has such an agent, or correct the name"
            ) from error
        if isinstance(error, QueueFull):
            raise QueueFull(
                f"the queue of agent type {task.agent_type!r} is full: try again later, or start more workers"
            ) from error

    async def _open_consuming(self) -> None:
        """Open the connection for replies and events when it is first needed."""
        async with self._opening:
            if not self._consumes:
                await self._consuming.open()
                self._loops.start("consuming connection", self._consuming.supervise())
                self._consumes = True

    async def _listen(self) -> None:
        """Consume our replies from now on."""
        if self._answers is not None:
            return
        await self._open_consuming()
        async with self._opening:
            if self._answers is None:
                wanted = Topology((), (self._replies,), ())
                await self._consuming.declare(wanted)
                consumer = Consumer(
                    self._consuming,
                    self._replies.name,
                    self._awaited.take,
                    lambda: self._consuming.declare(wanted),
                )
                consumer.want(REPLIES_PREFETCH)
                self._loops.start("replies", consumer.run())
                self._answers = consumer


__all__: Sequence[str] = ("Cancellation", "Client", "Submission", "make_task")
