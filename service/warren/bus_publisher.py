"""Confirmed, mandatory, pipelined publishes: `publish` returns when the broker has taken the message."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import structlog
from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from aiormq.exceptions import PublishError as Returned

from warren.bus import LOST, Connection, Message
from warren.errors import (
    AccessRefused,
    BrokerUnavailable,
    MessageTooLarge,
    PublishTimeout,
    QueueFull,
    Unroutable,
)
from warren.loops import cancellations, is_cancelled
from warren.settings import without_password
from warren_schemas import REPUBLISHED

log = structlog.get_logger(__name__)

PERSISTENT: Final = 2
_TOO_LARGE = re.compile(r"message size (\d+) is larger")


class Publisher:
    """Publishes on a connection; any number of publishes may be in flight at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Event] = {}

    async def publish(self, message: Message, *, timeout: float | None = None) -> None:
        """Publish one message and wait for the broker's confirm, `publish_timeout` seconds at most.

        A message whose confirm was lost with its connection is published again on the next one, marked
        `warren-republished`, because it may then be there twice.

        Raises QueueFull, Unroutable, MessageTooLarge, AccessRefused, PublishTimeout (it may or may not
        have arrived) or BrokerUnavailable (it was never sent).
        """
        limit = self._connection.settings.publish_timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        async with self._alone(message.message_id):
            sent = False
            while True:
                channel = await self._open_channel(deadline, sent=sent)
                before = cancellations()
                try:
                    await self._publish_on(channel, message, deadline)
                except asyncio.CancelledError:
                    if is_cancelled(before):
                        raise
                except LOST as error:
                    self._raise_if_refused(message, error)
                else:
                    return
                sent = True
                message = replace(message, headers={**message.headers, REPUBLISHED: True})
                log.info("publish.again", message_id=message.message_id, exchange=message.exchange)

    async def _publish_on(self, channel: Channel, message: Message, deadline: float) -> None:
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=_properties(message),
                mandatory=message.mandatory,
                timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
                # Waiting for the socket to drain as well would halve the rate; the confirm says more.
                wait=False,
            )
        except Returned as error:
            raise Unroutable(
                f"no queue takes routing key {message.routing_key!r} of exchange {message.exchange!r}"
            ) from error
        except DeliveryError as error:
            raise QueueFull(f"a queue behind {message.routing_key!r} is full and refuses more") from error
        except TimeoutError as error:
            raise PublishTimeout(
                f"the broker did not confirm message {message.message_id} in time "
                "(it may be blocking publishers: memory or disk alarm)"
            ) from error

    def _raise_if_refused(self, message: Message, error: BaseException) -> None:
        """Tell whether the channel closed because of this message, or of another one in flight."""
        text = str(error)
        exchange = message.exchange or "amq.default"
        match error:
            case ChannelPreconditionFailed() if found := _TOO_LARGE.search(text):
                if int(found[1]) == len(message.body):
                    raise MessageTooLarge(f"the broker refuses the message: {text}") from error
            case ChannelNotFoundEntity() if f"'{exchange}'" in text:
                raise Unroutable(f"exchange {exchange!r} does not exist on this broker") from error
            case ChannelAccessRefused() if f"'{exchange}'" in text:
                raise AccessRefused(f"no permission to publish to exchange {exchange!r}: {text}") from error

    @asynccontextmanager
    async def _alone(self, message_id: str) -> AsyncIterator[None]:
        """One publish at a time for one message id: returned messages are told apart by nothing else."""
        while (other := self._in_flight.get(message_id)) is not None:
            await other.wait()
        done = self._in_flight[message_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            done.set()

    async def _open_channel(self, deadline: float, *, sent: bool) -> Channel:
        """The channel with confirms, opened anew after a loss. Waits for the connection until `deadline`."""
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                while self._channel is None or self._channel.is_closed:
                    await self._connection.ready()
                    try:
                        self._channel = await self._connection.channel(confirms=True)
                    except BrokerUnavailable:
                        await asyncio.sleep(0.05)  # the supervision has not noticed the loss yet
                return self._channel
        except TimeoutError as error:
            where = without_password(self._connection.url)
            if sent:
                raise PublishTimeout(
                    f"{where} was lost before it confirmed, and did not come back"
                ) from error
            raise BrokerUnavailable(f"not connected to {where}") from error


def _properties(message: Message) -> spec.Basic.Properties:
    """AMQP 0-9-1 basic properties; `expiration` is milliseconds in a string there."""
    expiration = None if message.expiration is None else str(max(0, int(message.expiration * 1000)))
    return spec.Basic.Properties(
        message_id=message.message_id,
        content_type=message.content_type,
        delivery_mode=PERSISTENT,
        headers=message.headers,
        priority=message.priority,
        expiration=expiration,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
    )
