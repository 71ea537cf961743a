"""Publishing what must not be lost: again and again, until the broker has taken it."""

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

# Seconds between attempts: at first, and at most.
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

Refusals: TypeAlias = tuple[type[BrokerError], ...]
REFUSALS: Final[Refusals] = (QueueFull, MessageRefused)
"""What no waiting changes, or what its caller has to decide about."""


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


class RetryingPublisher:
    """Waits for a broker that is away, blocked or refuses us for a while, with growing pauses.

    `declare` puts back exchanges and queues that were deleted.
    """

    def __init__(self, publisher: Publisher, declare: Callable[[], Awaitable[None]] | None = None) -> None:
        self._publisher, self._declare = publisher, declare

    async def publish(self, message: Message, *, raises: Refusals = REFUSALS) -> None:
        """Publish a message, as long as it takes. Raises only what `raises` names.

        A message that no queue takes is published again after everything has been declared. One that may
        have arrived is marked `warren-republished`.
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
