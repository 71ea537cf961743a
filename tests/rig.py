"""One namespace on one broker: what an integration test holds in its hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, DeliveredMessage

from tests.brokers import TestBroker
from warren import Client, Settings, Warren
from warren.bus.topology import Names
from warren.worker.worker import Worker
from warren_schemas import Event

PATIENCE = 60.0  # seconds until a wait gives up: far over what anything takes, even on a busy machine

# Fast where the defaults are made for production; the numbers that promises are about stay as they are.
QUICK: dict[str, Any] = {
    "retry_initial_delay": 0.02,
    "retry_max_delay": 0.2,
    "heartbeat_interval": 0.5,
    "breaker_reset_timeout": 0.5,
    "reconnect_max_delay": 0.5,
    "drain_timeout": 5,
    "ageing_step": 3600,  # so that no task changes its place, however slow the machine is
    "store_url": "none",
}


async def eventually(
    condition: Callable[[], Any], what: str = "the condition", patience: float = PATIENCE
) -> Any:
    """Wait until the condition (a function, or one that gives an awaitable) is true, and return its value."""
    try:
        async with asyncio.timeout(patience):
            while True:
                value = condition()
                if isinstance(value, Awaitable):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true within {patience:g} s") from None


class Rig:
    """Settings, workers, clients and a plain AMQP channel in one namespace of its own."""

    def __init__(self, broker: TestBroker) -> None:
        self.broker, self.url, self.profile = broker, broker.url, broker.profile
        self.settings = Settings(namespace=f"t{uuid4().hex[:10]}", **QUICK)
        self.names = Names(self.settings.namespace)

    def with_settings(self, **changes: Any) -> Settings:
        """The quick settings of this namespace with some changed."""
        return Settings(**{"namespace": self.settings.namespace, **QUICK, **changes})

    @asynccontextmanager
    async def worker(
        self, app: Warren, url: str | None = None, *, is_paused: Collection[str] = (), **changes: Any
    ) -> AsyncIterator[Worker]:
        """A worker in this process; it consumes what is not paused when this is entered, and is drained."""
        worker = Worker(app, self.with_settings(**changes), url or self.url)
        running = asyncio.create_task(worker.run())
        try:
            await self._until_consuming(worker, running, is_paused)
            yield worker
        finally:
            worker.stop()
            async with asyncio.timeout(PATIENCE):
                await running

    async def _until_consuming(
        self, worker: Worker, running: asyncio.Task[None], is_paused: Collection[str]
    ) -> None:
        def consuming() -> bool:
            if running.done():
                running.result()
            return bool(worker.lanes) and all(
                lane.consumer.is_consuming for name, lane in worker.lanes.items() if name not in is_paused
            )

        await eventually(consuming, "the worker consumes")

    @asynccontextmanager
    async def client(self, url: str | None = None, **changes: Any) -> AsyncIterator[Client]:
        """A client of this namespace."""
        async with Client(url or self.url, settings=self.with_settings(**changes)) as client:
            yield client

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AbstractChannel]:
        """A channel (with confirms) of a plain AMQP client that knows nothing of Warren."""
        connection = await aiormq.connect(self.url)
        try:
            yield await connection.channel(on_return_raises=True)
        finally:
            await connection.close()

    @asynccontextmanager
    async def listening(self, pattern: str = "#") -> AsyncIterator[list[Event]]:
        """A list that events of this namespace are appended to, as they arrive."""
        events: list[Event] = []
        async with self.plain() as channel:
            await channel.exchange_declare(self.names.events, exchange_type="topic", durable=True)
            queue = str((await channel.queue_declare(exclusive=True)).queue)
            await channel.queue_bind(queue, self.names.events, pattern)

            async def keep(message: DeliveredMessage) -> None:
                events.append(Event.model_validate_json(message.body))

            await channel.basic_consume(queue, keep, no_ack=True)
            yield events

    async def dead(self, count: int = 1) -> list[DeliveredMessage]:
        """Take this many messages from the dead queue, waiting for them."""
        found: list[DeliveredMessage] = []
        async with self.plain() as channel:
            while len(found) < count:
                message = await eventually(lambda: _get(channel, self.names.dead), f"{count} dead letters")
                found.append(message)
                await channel.basic_ack(message.delivery_tag)
        return found

    async def depth(self, queue: str) -> int:
        """Messages ready in a queue."""
        async with self.plain() as channel:
            return int((await channel.queue_declare(queue, passive=True)).message_count or 0)


async def _get(channel: AbstractChannel, queue: str) -> DeliveredMessage | None:
    message = await channel.basic_get(queue)
    return message if message.delivery_tag else None


async def publish(
    channel: AbstractChannel, exchange: str, routing_key: str, body: Any, **properties: Any
) -> None:
    """Publish as any AMQP client would: JSON unless it is bytes, mandatory, confirmed."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    basic = spec.Basic.Properties(
        **{"content_type": "application/json", "delivery_mode": 2, "message_id": uuid4().hex, **properties}
    )
    await channel.basic_publish(
        raw, exchange=exchange, routing_key=routing_key, properties=basic, mandatory=True
    )


def task_body(agent_type: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
    """The body of a task as a producer writes it, with only what must be there."""
    return {"version": 1, "task_id": str(uuid4()), "agent_type": agent_type, "payload": payload, **fields}
