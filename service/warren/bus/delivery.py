"""Deliveries, and the batching of their acknowledgements."""

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
    """The acknowledgements of one channel. Those of one turn of the event loop are sent together.

    `multiple=True` covers every tag up to the given one (AMQP 0-9-1, `basic.ack`), so it is used only for
    tags below the oldest unsettled message. By measurement it saves a third of the cost of a delivery.
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._unsettled: dict[int, float] = {}  # when each arrived, in monotonic seconds
        self._batch: list[int] = []
        self._sending = asyncio.Lock()
        self._flush: asyncio.Task[None] | None = None
        self._shut = False
        # If the queue was deleted, unacknowledged messages do not come back.
        self.queue_gone = False

    @property
    def is_open(self) -> bool:
        """Whether the broker still takes acknowledgements for these deliveries."""
        return not self._shut and not self._channel.is_closed

    async def shut(self) -> None:
        """Send the waiting acknowledgements, and none after them.

        A later frame on a closing channel would close the whole connection (504, *expected channel.open*).
        """
        await self.flush()
        self._shut = True

    def delivered(self, tag: int) -> None:
        """Record an arrived message. Tags only grow, so the first recorded one is the oldest."""
        self._unsettled[tag] = time.monotonic()

    def longest_held(self) -> float:
        """Age of the oldest unsettled message in seconds; 0 without one."""
        arrived = next(iter(self._unsettled.values()), None)
        return 0.0 if arrived is None else time.monotonic() - arrived

    def ack(self, tag: int) -> None:
        """Acknowledge the message together with others of this turn of the event loop."""
        del self._unsettled[tag]
        self._batch.append(tag)
        if len(self._batch) == 1:
            self._flush = asyncio.create_task(self.flush(), name="acknowledgements")

    def is_settled(self, tag: int) -> bool:
        """Whether the message was acknowledged or given back already."""
        return tag not in self._unsettled

    async def give_back(self, tag: int, *, requeue: bool) -> None:
        """Give one message back to its queue, or without `requeue` to its dead-letter exchange.

        Earlier acknowledgements are sent first.
        """
        await self.flush()
        async with self._sending:  # until this frame is sent, no `multiple` may cover this tag
            if self.is_open:
                with suppress(ChannelInvalidStateError):  # the broker takes all back with the channel
                    await self._channel.basic_nack(tag, requeue=requeue, wait=False)
            self._unsettled.pop(tag, None)

    async def flush(self) -> None:
        """Send the waiting acknowledgements. On a closed channel it does nothing: the messages come back."""
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
    """One delivered message. It is settled once: a second acknowledgement or give-back does nothing."""

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
        # The library's message object is not kept: it would stay in memory as long as the task.
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
        """Whether an earlier consumer vanished while it held this message, as far as the broker can tell.

        Quorum queues count lost deliveries apart from those given back. Classic queues only say redelivered.
        """
        return "x-delivery-count" in self.headers if self.counted else self.redelivered

    def came_on(self, acknowledgements: Acknowledgements | None) -> bool:
        """Whether the message came on the channel of these acknowledgements."""
        return self._acknowledgements is acknowledgements

    @property
    def comes_back(self) -> bool:
        """Whether the broker delivers an unsettled message again. Not if its queue was deleted."""
        return not self._acknowledgements.queue_gone

    @property
    def is_live(self) -> bool:
        """Whether the message can still be settled. If not, the broker delivers it again."""
        return self._acknowledgements.is_open

    def ack(self) -> None:
        """Acknowledge the message. Without its channel this has no effect: the broker delivers it again."""
        if not self._acknowledgements.is_settled(self._tag):
            self._acknowledgements.ack(self._tag)
            self._on_settled(self)

    async def release(self) -> None:
        """Give the message back to its queue (nack with requeue, which counts as no delivery)."""
        await self._give_back(requeue=True)

    async def reject(self) -> None:
        """Reject the message: the broker moves it to its queue's dead-letter exchange, as `rejected`."""
        await self._give_back(requeue=False)

    async def _give_back(self, *, requeue: bool) -> None:
        if not self._acknowledgements.is_settled(self._tag):
            await self._acknowledgements.give_back(self._tag, requeue=requeue)
            self._on_settled(self)
