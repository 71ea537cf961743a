"""Publishes that wait for the broker as long as it takes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from warren.bus import Message
from warren.bus_publisher import Publisher
from warren.errors import BrokerError, HeadersTooLarge, MessageRefused, PublishTimeout, QueueFull, Unroutable
from warren.loops import GrowingPause
from warren.wire import lightened
from warren_schemas import REPUBLISHED

log = structlog.get_logger(__name__)

# Seconds between attempts to publish what must not be lost: at first, and at most.
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0


async def publish_lightly(publisher: Publisher, message: Message) -> None:
    """Publish, without what a producer added to the headers if they do not fit into a frame.

    Raises what `Publisher.publish` raises.
    """
    try:
        await publisher.publish(message)
    except HeadersTooLarge as error:
        light = lightened(message)
        if light.headers == message.headers:
            raise
        log.warning("headers.left_out", message_id=message.message_id, error=str(error))
        await publisher.publish(light)


async def publish_patiently(
    publisher: Publisher, message: Message, *, unless: type[BrokerError] = QueueFull
) -> None:
    """Publish, waiting for a broker that is away, blocked or refuses us for the time being.

    Headers of a producer that do not fit are left out. Raises QueueFull, Unroutable, MessageRefused, and
    the error that `unless` names.
    """
    pauses = GrowingPause(PAUSE, LONGEST_PAUSE)
    while True:
        try:
            return await publish_lightly(publisher, message)
        except (QueueFull, Unroutable, MessageRefused, unless):
            raise
        except BrokerError as error:
            log.warning("publish.waits", message_id=message.message_id, error=str(error))
            if isinstance(error, PublishTimeout):
                message = replace(message, headers={**message.headers, REPUBLISHED: True})
        await asyncio.sleep(pauses.failed())
