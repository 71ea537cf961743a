"""Publisher with confirms, mandatory routing and pipelining: `publish` returns after the broker's confirm."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import structlog
from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPChannelError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from aiormq.exceptions import PublishError as Returned
from pamqp.encode import encode_table_value
from pamqp.header import ContentHeader

from warren.bus.connection import Connection, Message
from warren.bus.errors import LOST, why_closed
from warren.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    HeadersTooLarge,
    MessageRefused,
    MessageTooLarge,
    PublishTimeout,
    QueueFull,
    Unroutable,
)
from warren.settings import without_password
from warren.support.loops import GrowingPause, cancellations, is_cancelled
from warren_schemas import REPUBLISHED

log = structlog.get_logger(__name__)

PERSISTENT: Final = 2
_TOO_LARGE = re.compile(r"message size (\d+) is larger")
# Errors of pamqp for a property that it cannot encode, and of aiormq for a routing key that is too long.
UNWRITABLE = (ValueError, TypeError, OverflowError, struct.error)
# RabbitMQ accepts about ten years, and closes the channel for more (406). A task that expires later passes
# through ageing once a year.
LONGEST_EXPIRATION: Final = 365 * 86400.0  # seconds
# Bytes reserved for the header `warren-republished`, which a second publish adds.
MARK_ROOM: Final = 64
SMALLEST_FRAME: Final = 4096  # bytes: every peer accepts frames of this size (AMQP 0-9-1, 4.2.3)
FIRST_PAUSE: Final = 0.05  # seconds before the third attempt at one publish; the second has no pause
LONGEST_PAUSE: Final = 5.0
CLOSE_TIMEOUT: Final = 5.0  # seconds


class Publisher:
    """Publishes on one connection. Any number of publishes may be in flight at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Event] = {}

    async def publish(self, message: Message, *, timeout: float | None = None) -> None:
        """Publish one message and wait for the broker's confirm, `publish_timeout` seconds at most.

        If the connection is lost before the confirm, the message is published again on the next connection.
        The second copy is marked `warren-republished`, because the broker may hold both.

        Raises QueueFull, Unroutable, MessageRefused (MessageTooLarge, HeadersTooLarge), AccessRefused,
        PublishTimeout (the message may or may not have arrived) or BrokerUnavailable. If an error's
        `may_have_arrived` is true, an earlier copy was sent and may have arrived.
        """
        limit = self._connection.settings.publish_timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        sent, is_suspect, pauses = False, False, GrowingPause(FIRST_PAUSE, LONGEST_PAUSE)
        async with self._alone(message.message_id), _noting(lambda: sent):
            while True:
                channel = await self._open_channel(deadline, sent=sent, alone=is_suspect)
                before = cancellations()
                try:
                    return await self._publish_on(channel, message, deadline)
                except (asyncio.CancelledError, *LOST) as caught:
                    if isinstance(caught, asyncio.CancelledError) and is_cancelled(before):
                        raise
                    error = why_closed(channel) or caught
                    self._raise_if_refused(message, error, alone=is_suspect)
                    is_suspect = is_suspect or isinstance(error, AMQPChannelError)
                finally:
                    if channel is not self._channel:
                        await _close(channel)
                if sent:
                    await self._wait(pauses.failed(), deadline)
                sent = True
                message = replace(message, headers={**message.headers, REPUBLISHED: True})
                log.info("publish.again", message_id=message.message_id, exchange=message.exchange)

    async def _wait(self, seconds: float, deadline: float) -> None:
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(seconds, left)))

    async def _publish_on(self, channel: Channel, message: Message, deadline: float) -> None:
        try:
            properties = _properties(message)
            _check_size(message, properties, channel.max_content_size)
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=properties,
                mandatory=message.mandatory,
                timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
                # Waiting for the socket to drain as well would halve the rate. The confirm is the proof.
                wait=False,
            )
        except UNWRITABLE as error:
            raise MessageRefused(f"message {message.message_id} cannot be written: {error}") from error
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

    def _raise_if_refused(self, message: Message, error: BaseException, *, alone: bool) -> None:
        """Raise the error of this message if the broker closed the channel because of it.

        Another message in flight may be the reason. The broker's text names the message in some refusals.
        In the others the message is known to be the reason only if it was `alone` on the channel.
        """
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
            case AMQPChannelError() if alone:
                raise MessageRefused(f"the broker refuses message {message.message_id}: {text}") from error

    @asynccontextmanager
    async def _alone(self, message_id: str) -> AsyncIterator[None]:
        """Allow one publish at a time for each message id: only the id identifies a returned message."""
        while (other := self._in_flight.get(message_id)) is not None:
            await other.wait()
        done = self._in_flight[message_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            done.set()

    async def _open_channel(self, deadline: float, *, sent: bool, alone: bool) -> Channel:
        """The shared channel, opened again after a loss. Waits for the connection until `deadline`.

        With `alone`, a separate channel for this message: it was in flight with others when the broker
        refused one of them. A refusal on the separate channel can only mean this message.
        """
        if not alone and self._channel is not None and not self._channel.is_closed:
            return self._channel
        try:
            async with asyncio.timeout_at(deadline):
                if alone:
                    return await self._new_channel()
                async with self._opening:
                    if self._channel is None or self._channel.is_closed:
                        self._channel = await self._new_channel()
                    return self._channel
        except TimeoutError as error:
            where = without_password(self._connection.url)
            if sent:
                raise PublishTimeout(
                    f"{where} was lost before it confirmed, and did not come back"
                ) from error
            raise BrokerUnavailable(f"not connected to {where}") from error

    async def _new_channel(self) -> Channel:
        while True:
            await self._connection.ready()
            try:
                return await self._connection.channel(confirms=True)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)  # the supervision has not noticed the loss yet


async def _close(channel: Channel) -> None:
    # Closing a channel that the broker has closed would wait for an answer that never comes.
    if not channel.is_closed and why_closed(channel) is None:
        with suppress(*LOST, TimeoutError):
            await asyncio.wait_for(channel.close(), CLOSE_TIMEOUT)


@asynccontextmanager
async def _noting(was_sent: Callable[[], bool]) -> AsyncIterator[None]:
    """Set `may_have_arrived` on an error if an earlier copy of the message was sent and not confirmed."""
    try:
        yield
    except BrokerError as error:
        error.may_have_arrived |= was_sent()
        raise


def _properties(message: Message) -> spec.Basic.Properties:
    """AMQP 0-9-1 basic properties."""
    return spec.Basic.Properties(
        message_id=message.message_id,
        content_type=message.content_type,
        delivery_mode=PERSISTENT,
        headers=message.headers,
        priority=message.priority,
        expiration=_expiration(message.expiration),
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
    )


def _expiration(seconds: float | None) -> str | None:
    """The expiration as AMQP wants it: milliseconds in a string, at most LONGEST_EXPIRATION."""
    return None if seconds is None else str(int(max(0.0, min(seconds, LONGEST_EXPIRATION)) * 1000))


def _check_size(message: Message, properties: spec.Basic.Properties, room: int) -> None:
    """Raise HeadersTooLarge unless the content header fits into one frame of `room` bytes.

    The broker closes the whole connection for a larger header (501), which would break all other publishes.
    """
    if _at_most(message) < SMALLEST_FRAME - MARK_ROOM:
        return
    size = len(ContentHeader(properties=properties, body_size=len(message.body)).marshal()) + MARK_ROOM
    if size > room:
        raise HeadersTooLarge(
            f"the headers and properties of message {message.message_id} take {size} bytes; "
            f"a frame of this broker holds {room}: send less in headers such as tracestate"
        )


def _at_most(message: Message) -> int:
    """A cheap upper bound of the content header's size, in bytes. It saves measuring small headers."""
    size = 2048  # the other properties: at most seven strings of 255 bytes
    for name, value in message.headers.items():
        size += 4 * len(name) + 16
        if isinstance(value, str):
            size += 4 * len(value)
        elif isinstance(value, bytes | bytearray):
            size += len(value)
        elif isinstance(value, dict | list):
            size += len(encode_table_value(value))
    return size
