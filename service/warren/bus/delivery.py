"""Deliveries, and their acknowledgements put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError

from warren.bus.connection import Headers
from warren_schemas import REPUBLISHED


class Acknowledgements:
    """The acknowledgements of one channel: those of one turn of the event loop leave together.

    `multiple=True` covers every tag up to the given one (AMQP 0-9-1, `basic.ack`), so it may be used up to
    the oldest message that is still unsettled. Measured: it takes a third off the cost of a delivery.
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._unsettled: dict[int, float] = {}  # when each arrived, in monotonic seconds
        self._batch: list[int] = []
        self._sending = asyncio.Lock()
        self._flush: asyncio.Task[None] | None = None
        self._shut = False
        # The queue may be gone: then nothing of what is unacknowledged comes back.
        self.queue_gone = False

    @property
    def is_open(self) -> bool:
        """Whether the broker still takes acknowledgements for these deliveries."""
        return not self._shut and not self._channel.is_closed

    async def shut(self) -> None:
        """Send what has come together, and nothing more: a frame on a channel that is closing would cost us
        the whole connection (504, *expected channel.open*).
        """
        await self.flush()
        self._shut = True

    def delivered(self, tag: int) -> None:
        """A message has arrived. Tags only grow, so the first one here is the oldest."""
        self._unsettled[tag] = time.monotonic()

    def longest_held(self) -> float:
        """Seconds since the oldest message arrived that is still unsettled; 0 without one."""
        arrived = next(iter(self._unsettled.values()), None)
        return 0.0 if arrived is None else time.monotonic() - arrived

    def ack(self, tag: int) -> None:
        """Acknowledge with the others of this turn."""
        del self._unsettled[tag]
        self._batch.append(tag)
        if len(self._batch) == 1:
            self._flush = asyncio.create_task(self.flush(), name="acknowledgements")

    def is_settled(self, tag: int) -> bool:
        """Whether it was acknowledged or given back already."""
        return tag not in self._unsettled

    async def give_back(self, tag: int, *, requeue: bool) -> None:
        """Give one message back to its queue, or to its dead-letter exchange, behind the acknowledgements
        before it.
        """
        await self.flush()
        async with self._sending:  # until the frame is out, no `multiple` may reach past this tag
            if self.is_open:
                with suppress(ChannelInvalidStateError):  # with the channel everything has gone back
                    await self._channel.basic_nack(tag, requeue=requeue, wait=False)
            self._unsettled.pop(tag, None)

    async def flush(self) -> None:
        """Send what has come together. Nothing to do on a closed channel: the messages return."""
        async with self._sending:
            batch, self._batch = self._batch, []
            if not batch or not self.is_open:
                return
            oldest = next(iter(self._unsettled), None)
            together = [tag for tag in batch if oldest is None or tag < oldest]
            try:
                if together:
                    await self._channel.basic_ack(max(together), multiple=True, wait=False)
                for tag in batch:
                    if oldest is not None and tag > oldest:
                        await self._channel.basic_ack(tag, wait=False)
            except ChannelInvalidStateError:
                return


class Delivery:
    """One message as it was delivered, to be acknowledged or given back; only the first of these counts."""

    __slots__ = (
        "_acknowledgements",
        "_on_settled",
        "_tag",
        "body",
        "consumer_tag",
        "counted",
        "headers",
        "properties",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        queue: str,
        message: DeliveredMessage,
        acknowledgements: Acknowledgements,
        on_settled: Callable[[Delivery], None],
        *,
        counted: bool,
    ) -> None:
        self.queue = queue
        self.counted = counted
        self.body: bytes = message.body
        self.properties = message.header.properties
        self.headers: Headers = dict(self.properties.headers or {})
        self.redelivered = bool(message.redelivered)
        self.routing_key = str(message.routing_key or "")
        # Of the message itself nothing is kept: it would lie here as long as the task does.
        self._tag, self.consumer_tag = message.delivery_tag or 0, message.consumer_tag
        self._acknowledgements = acknowledgements
        self._on_settled = on_settled
        acknowledgements.delivered(self._tag)

    def drop_body(self) -> None:
        """Free the memory of a message that goes back unread."""
        self.body = b""

    @property
    def may_be_second_copy(self) -> bool:
        """Whether this message may have been delivered, or published, before."""
        return self.redelivered or "x-delivery-count" in self.headers or REPUBLISHED in self.headers

    @property
    def was_dropped(self) -> bool:
        """Whether somebody held this message and vanished, as far as the broker can tell.

        Quorum queues count that apart from messages that were given back; classic ones only say redelivered.
        """
        return "x-delivery-count" in self.headers if self.counted else self.redelivered

    def came_on(self, acknowledgements: Acknowledgements | None) -> bool:
        """Whether it came on this channel."""
        return self._acknowledgements is acknowledgements

    @property
    def comes_back(self) -> bool:
        """Whether the broker delivers it again if it is never settled: not when its queue was deleted."""
        return not self._acknowledgements.queue_gone

    @property
    def is_live(self) -> bool:
        """Whether it can still be settled. If not, the broker delivers the message again."""
        return self._acknowledgements.is_open

    def ack(self) -> None:
        """Acknowledge. It has no effect when the channel is gone: the message is delivered again."""
        if not self._acknowledgements.is_settled(self._tag):
            self._acknowledgements.ack(self._tag)
            self._on_settled(self)

    async def release(self) -> None:
        """Give the message back to its queue (nack with requeue, which counts as no delivery)."""
        await self._give_back(requeue=True)

    async def reject(self) -> None:
        """Have the broker move the message to the dead-letter exchange of its queue, as `rejected`."""
        await self._give_back(requeue=False)

    async def _give_back(self, *, requeue: bool) -> None:
        if not self._acknowledgements.is_settled(self._tag):
            await self._acknowledgements.give_back(self._tag, requeue=requeue)
            self._on_settled(self)
