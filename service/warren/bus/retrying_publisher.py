"""Retrying publisher: publishes a message again until the broker confirms it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeAlias

import structlog

from warren.bus.connection import Message
from warren.bus.messages import lightened
from warren.bus.publisher import Publisher
from warren.errors import (
    BrokerError,
    HeadersTooLarge,
    MessageRefused,
    PublishTimeout,
    QueueFull,
    Unroutable,
)
from warren.support.loops import GrowingPause
from warren_schemas import REPUBLISHED

log = structlog.get_logger(__name__)

# Seconds between attempts: the first pause, and the longest.
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

Refusals: TypeAlias = tuple[type[BrokerError], ...]
REFUSALS: Final[Refusals] = (QueueFull, MessageRefused)
"""Errors that waiting does not change, or that the caller decides about."""


async def publish_lightly(publisher: Publisher, message: Message) -> None:
    """Publish a message. If its headers do not fit into a frame, leave the producer's own headers out.

    Raises the errors of `Publisher.publish`.
    """
    try:
        await publisher.publish(message)
    except HeadersTooLarge as error:
        light = lightened(message)
        if light.headers == message.headers:
            raise
        log.warning("headers.left_out", message_id=message.message_id, error=str(error))
        await publisher.publish(light)


class RetryingPublisher:
    """Publishes with growing pauses while the broker is away, blocked, or refuses for a while.

    `declare` declares deleted exchanges and queues again.
    """

    def __init__(self, publisher: Publisher, declare: Callable[[], Awaitable[None]] | None = None) -> None:
        self._publisher, self._declare = publisher, declare

    async def publish(self, message: Message, *, raises: Refusals = REFUSALS) -> None:
        """Publish a message, without a time limit. Raises only the errors in `raises`.

        An unroutable message is published again after everything has been declared. A message that may have
        arrived is marked `warren-republished`.
        """
        pauses = GrowingPause(PAUSE, LONGEST_PAUSE)
        while True:
            try:
                return await publish_lightly(self._publisher, message)
            except raises:
                raise
            except Unroutable as error:
                log.error("publish.unroutable", message_id=message.message_id, error=str(error))
                await self._declare_again()
            except BrokerError as error:
                log.warning("publish.waits", message_id=message.message_id, error=str(error))
                if isinstance(error, PublishTimeout):
                    message = replace(message, headers={**message.headers, REPUBLISHED: True})
            await asyncio.sleep(pauses.failed())

    async def _declare_again(self) -> None:
        if self._declare is None:
            return
        try:
            await self._declare()
        except BrokerError as error:
            log.warning("declare.waits", error=str(error))
