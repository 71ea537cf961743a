"""Consumer of one queue, whose prefetch can be changed, paused and resumed at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Self
from uuid import uuid4

import structlog
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelInvalidStateError

from warren.bus.connection import Connection
from warren.bus.delivery import Acknowledgements, Delivery
from warren.bus.errors import LOST, translate, why_closed
from warren.errors import AccessRefused, BrokerError, NotDeclared
from warren.support.loops import cancellations, is_cancelled

log = structlog.get_logger(__name__)

PASSING = (*LOST, BrokerError)
RECOVERY_PAUSE = 0.1  # seconds: a channel can see a loss before the connection's supervision does
LONGEST_PAUSE = 5.0
QUEUE_GONE = "the broker cancelled the consumer: its queue was deleted or moved"
TIMED_OUT = "the broker took deliveries back that were not acknowledged in time (consumer timeout)"
TIMED_OUT_HINT = (
    "what still runs goes on, and its end counts: raise the broker's time-out or lower the agent's"
)
# Part of the consumer time-out. If the broker cancels a consumer that holds a delivery this old, the time-out
# is the reason.
NEARLY = 0.95


class Consumer:
    """Consumes one queue on a channel of its own. `run` brings the prefetch to the wanted size.

    `on_delivery` is called for each message and must not block. `declare` is called after a loss, before the
    queue is consumed again: the queue may be missing.

    `basic.qos` limits each *consumer*: unacknowledged messages of an earlier consumer do not count against
    the new one. So a new consumer gets only the places that those messages leave. It is replaced by a wider
    one when their number has shrunk to half.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        self.queue = queue
        self._connection, self._on_delivery, self._declare = connection, on_delivery, declare
        self._channel: AbstractChannel | None = None
        self._acknowledgements: Acknowledgements | None = None
        self._tag: str | None = None
        self._budget = 0
        self._fresh: int | None = None
        self._granted = 0
        self._granted_budget = 0
        self._granted_fresh: int | None = None
        self._unacked = self._peak = 0
        self._older = 0
        self._broken: str | None = None
        self._renewing = False
        self._losses = 0
        self._has_consumed = False
        self._wake = asyncio.Event()
        self._paused = asyncio.Event()
        self._paused.set()

    @property
    def unacked(self) -> int:
        """The number of messages delivered on the present channel and not settled yet."""
        return self._unacked

    @property
    def bound(self) -> int:
        """The most messages that may be unacknowledged until the latest `want` has taken effect."""
        return max(self._unacked, self._older + self._granted)

    def take_peak(self) -> int:
        """The most messages that were unacknowledged at once since the last call."""
        peak, self._peak = self._peak, self._unacked
        return peak

    @property
    def is_consuming(self) -> bool:
        """Whether the broker knows this consumer and may deliver now."""
        return not self._paused.is_set() and self._broken is None

    def want(self, budget: int, *, fresh: int | None = None) -> None:
        """Hold at most `budget` unacknowledged messages from now on; 0 pauses.

        `fresh` limits the new messages, independent of those that are still unacknowledged.
        """
        self._budget, self._fresh = budget, fresh
        self._wake.set()

    def renew(self) -> None:
        """Allow `fresh` more messages: the ones that came led to nothing, and are still held here."""
        self._renewing = self._fresh is not None
        self._wake.set()

    async def paused(self) -> None:
        """Wait until nothing is consumed, because it was paused or is not possible now."""
        await self._paused.wait()

    async def run(self) -> None:
        """Consume until cancelled, despite lost connections, channels, queues and permissions.

        Raises AccessRefused if the first attempt to consume is refused; after a good start a refusal is
        retried. Raises QueueMismatch if the queue was made again with other arguments.
        """
        while True:
            await self._connection.ready()
            self._wake.clear()
            before = cancellations()
            try:
                await self._steer()
            except asyncio.CancelledError:
                if is_cancelled(before):
                    raise
                await self._drop_channel()
            except PASSING as error:
                if isinstance(error, ChannelAccessRefused) and not self._has_consumed:
                    raise AccessRefused(f"no permission to consume queue {self.queue!r}: {error}") from error
                await self._recover(error)
            else:
                self._losses = 0
                await self._wake.wait()

    async def _recover(self, error: BaseException) -> None:
        await self._drop_channel()
        if TIMED_OUT in str(error):
            log.warning("consumer.timed_out", queue=self.queue, error=str(error), hint=TIMED_OUT_HINT)
        else:
            log.warning("consumer.lost", queue=self.queue, error=str(error))
        await asyncio.sleep(min(RECOVERY_PAUSE * 2 ** min(self._losses, 16), LONGEST_PAUSE))
        self._losses += 1
        if not self._connection.is_open:
            return
        try:
            await self._declare()
        except BrokerError as refused:
            log.warning("consumer.waits", queue=self.queue, error=str(refused))

    async def _steer(self) -> None:
        """Open, replace or cancel the consumer, so that it matches what `want` asked for."""
        if self._broken is not None:
            raise ChannelInvalidStateError(await self._why_broken(self._broken))
        if self._channel is None or self._channel.is_closed:
            await self._open_channel()
        if self._tag is not None and (self._budget == 0 or self._worth_replacing()):
            await self._cancel()
        if self._tag is None and (room := self._room(self._unacked)) > 0:
            await self._consume(room)

    def _room(self, older: int) -> int:
        """The prefetch for a new consumer while `older` messages of earlier consumers are unacknowledged."""
        room = max(0, self._budget - older)
        return room if self._fresh is None else min(room, self._fresh)

    def _worth_replacing(self) -> bool:
        """Whether a new consumer with the present room would be better than the current one."""
        if self._fresh != self._granted_fresh or self._renewing:
            return True  # replacing it also wakes callers of `paused`, who hold messages until then
        growth = self._room(self._older) - self._granted
        if self._budget != self._granted_budget:
            return growth != 0
        return growth < 0 or growth >= max(1, self._older)

    async def _open_channel(self) -> None:
        await self._drop_channel()
        channel = await self._connection.channel()
        channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
        channel.closing.add_done_callback(lambda _: self._closed(channel))
        self._channel, self._acknowledgements = channel, Acknowledgements(channel)

    async def _consume(self, room: int) -> None:
        channel, acknowledgements = self._channel, self._acknowledgements
        assert channel is not None
        assert acknowledgements is not None
        await acknowledgements.flush()
        self._older, self._granted = self._unacked, room
        self._granted_budget, self._granted_fresh = self._budget, self._fresh
        self._renewing = False
        await channel.basic_qos(prefetch_count=room)
        self._paused.clear()
        self._tag = f"{self.queue}.{uuid4().hex}"
        await channel.basic_consume(self.queue, self._deliver, consumer_tag=self._tag)
        self._has_consumed = True

    async def _cancel(self) -> None:
        assert self._channel is not None
        assert self._tag is not None
        tag, self._tag = self._tag, None
        await self._channel.basic_cancel(tag)
        self._granted = self._older = 0  # after the cancel: until then the broker may have delivered more
        self._paused.set()

    async def close(self) -> None:
        """Close the channel for good, after sending all acknowledgements made so far."""
        self._budget = 0
        await self._drop_channel()

    async def _deliver(self, message: DeliveredMessage) -> None:
        if message.channel is not self._channel or self._acknowledgements is None:
            return  # it came on a channel that was dropped: the broker delivers it again
        self._unacked += 1
        self._peak = max(self._peak, self._unacked)
        counted = self._connection.profile == "quorum"
        self._on_delivery(
            Delivery(self.queue, message, self._acknowledgements, self._settled, counted=counted)
        )

    def _settled(self, delivery: Delivery) -> None:
        if not delivery.came_on(self._acknowledgements):
            return
        self._unacked -= 1
        if self._tag is None:
            self._wake.set()  # there may be room for a consumer now
        elif delivery.consumer_tag != self._tag:
            self._older -= 1
            self._wake.set()

    def _cancelled_by_broker(self, frame: Any) -> None:
        if frame.consumer_tag == self._tag and self._acknowledgements is not None:
            self._acknowledgements.queue_gone = True
            self._broken = QUEUE_GONE
            self._wake.set()

    async def _why_broken(self, reason: str) -> str:
        """Find the reason of a cancelled consumer: a delivery held for too long, or a deleted queue.

        RabbitMQ 4.3 cancels the consumer of a quorum queue in both cases, and gives no reason.
        """
        acknowledgements = self._acknowledgements
        if reason != QUEUE_GONE or acknowledgements is None:
            return reason
        held = acknowledgements.longest_held()
        if held < self._connection.settings.consumer_timeout * NEARLY:
            return reason
        try:
            await self._connection.look(self.queue)
        except NotDeclared:
            return reason
        acknowledgements.queue_gone = False  # the queue exists: the broker delivers the messages again
        return f"{TIMED_OUT}: a delivery was held for {held:.0f} s"

    def _closed(self, channel: AbstractChannel) -> None:
        if channel is self._channel:
            error = why_closed(channel)
            is_late = error is not None and "acknowledgement" in str(error) and "timed out" in str(error)
            self._broken = f"{TIMED_OUT}: {error}" if is_late else f"the channel was closed: {error}"
            self._paused.set()
            self._wake.set()

    async def _drop_channel(self) -> None:
        channel, self._channel, self._tag = self._channel, None, None
        acknowledgements, self._acknowledgements = self._acknowledgements, None
        self._unacked = self._granted = self._older = 0
        self._broken = None
        self._paused.set()
        if channel is None or acknowledgements is None or channel.is_closed:
            return
        await acknowledgements.shut()
        with suppress(*LOST):
            await channel.close()


class Browser:
    """Reads a queue message by message. On leaving, unsettled messages go back to their places.

    An async context manager and an async iterator, which ends at the end of the queue.
    """

    def __init__(self, connection: Connection, queue: str) -> None:
        self._connection, self._queue = connection, queue

    async def __aenter__(self) -> Self:
        self._channel = await self._connection.channel()
        self._acknowledgements = Acknowledgements(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel.is_closed:
            return  # the broker has taken all messages back with the channel
        await self._acknowledgements.flush()
        await self._channel.basic_nack(0, multiple=True, requeue=True)  # 0: all that is unacknowledged
        await self._channel.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        while True:
            try:
                message = await self._channel.basic_get(self._queue)
            except LOST as error:
                raise translate(error, self._connection.url) from error
            if message.delivery_tag is None:
                return
            yield Delivery(self._queue, message, self._acknowledgements, lambda _: None, counted=False)
