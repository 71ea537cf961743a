"""A producer without Warren: plain AMQP with confirms, and a durable queue for answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

from warren.bus.errors import LOST
from warren.bus.topology import Queue

CONFIRMED_WITHIN: Final = 10.0  # seconds
CONNECTED_WITHIN: Final = 3.0  # short, so that a recovery that is measured is the fleet's
PAUSE: Final = 0.3  # seconds before a connection is opened again
HEARTBEAT: Final = 5  # seconds
PASSING: Final = (*LOST, TimeoutError)  # the faults of a row: the next connection may be better


class Producer:
    """Publishes, and takes answers in. A connection that is lost is opened again, for ever."""

    def __init__(self, url: str, answers: Queue, take: Callable[[bytes, bool], None]) -> None:
        self._url, self._answers, self._take = f"{url}?heartbeat={HEARTBEAT}", answers, take
        self._channel: AbstractChannel | None = None
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.losses: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._publishing()), asyncio.create_task(self._listening())]
        async with asyncio.timeout(60):
            await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def publish(self, exchange: str, body: dict[str, Any], *, wants_answer: bool) -> bool:
        """Publish a task. True: the broker has confirmed it, and it was routed to a queue."""
        properties = spec.Basic.Properties(
            content_type="application/json",
            delivery_mode=2,
            message_id=body["task_id"],
            priority=4,
            reply_to=self._answers.name if wants_answer else None,
            correlation_id=body["task_id"] if wants_answer else None,
        )
        try:
            async with asyncio.timeout(CONFIRMED_WITHIN):
                await self._ready.wait()
                assert self._channel is not None
                confirmed = await self._channel.basic_publish(
                    json.dumps(body).encode(),
                    exchange=exchange,
                    routing_key=body["agent_type"],
                    properties=properties,
                    mandatory=True,
                )
        except PASSING:  # nothing was confirmed
            return False
        return isinstance(confirmed, spec.Basic.Ack)

    async def _publishing(self) -> None:
        async def use(channel: AbstractChannel) -> None:
            self._channel = channel
            self._ready.set()

        while True:
            await self._while_connected(use)
            self._ready.clear()

    async def _listening(self) -> None:
        async def use(channel: AbstractChannel) -> None:
            queue = self._answers
            await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            await channel.basic_qos(prefetch_count=200)
            await channel.basic_consume(queue.name, self._taken)

        while True:
            await self._while_connected(use)

    async def _taken(self, message: DeliveredMessage) -> None:
        self._take(message.body, bool(message.redelivered))
        assert message.delivery_tag is not None
        await message.channel.basic_ack(message.delivery_tag)

    async def _while_connected(self, use: Callable[[AbstractChannel], Any]) -> None:
        """Open a connection, use it, and return when it or its channel is lost."""
        connection: AbstractConnection | None = None
        try:
            async with asyncio.timeout(CONNECTED_WITHIN):
                connection = await aiormq.connect(self._url)
                channel = await connection.channel(on_return_raises=True)
                await use(channel)
            await asyncio.wait([connection.closing, channel.closing], return_when=asyncio.FIRST_COMPLETED)
        except PASSING as error:
            self.losses[type(error).__name__] += 1
        finally:
            if connection is not None:
                with suppress(*PASSING):
                    async with asyncio.timeout(2):
                        await connection.close()
        await asyncio.sleep(PAUSE)
