"""Broadcast subscription: receives the messages of an exchange on an exclusive queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal
from uuid import uuid4

import structlog

from warren.bus.connection import Connection
from warren.bus.consumer import Consumer
from warren.bus.delivery import Delivery
from warren.bus.topology import Binding, Exchange, Queue, Topology
from warren.errors import BrokerError, BrokerUnavailable, ConfigurationError

log = structlog.get_logger(__name__)

PREFETCH: Final = 1000  # broadcast messages are small, and each is handled at once
REBIND: Final = 5.0  # seconds between two bindings: a deleted exchange loses its bindings


class Subscription:
    """An exclusive queue, bound to an exchange by patterns. The broker deletes it with the connection.

    `on_delivery` acknowledges each delivery and must not block. `on_declared` is called after each new queue:
    messages published between the loss of the old queue and the new one are missed. The queue's name begins
    with `prefix`. If `kind` is given, a missing exchange is declared with that kind; this needs a permission
    that listeners do not have.
    """

    def __init__(
        self,
        connection: Connection,
        exchange: str,
        patterns: Sequence[str],
        prefix: str,
        on_delivery: Callable[[Delivery], None],
        on_declared: Callable[[], None] = lambda: None,
        *,
        kind: Literal["topic", "fanout"] | None = None,
    ) -> None:
        self._connection, self._exchange, self._patterns = connection, exchange, patterns
        self._exchanges = () if kind is None else (Exchange(exchange, kind),)
        self._prefix, self._on_declared = prefix, on_declared
        self._consumer = Consumer(connection, self._new_name(), on_delivery, self.declare)
        self._is_declared = False

    async def declare(self) -> None:
        """Declare the queue. No message is missed from now on. `run` calls it if the caller has not."""
        # A new name each time: the old queue is exclusive to the old connection, and stays locked until the
        # broker notices that this connection is gone.
        name = self._consumer.queue = self._new_name()
        await self._connection.declare(
            Topology(await self._missing(), (Queue(name, exclusive=True),), self._bindings())
        )
        self._is_declared = True
        self._on_declared()

    async def _missing(self) -> tuple[Exchange, ...]:
        """The exchange, if it is missing and ours to declare. The check needs fewer permissions."""
        is_there = not self._exchanges or await self._connection.has_exchange(self._exchange)
        return () if is_there else self._exchanges

    def _bindings(self) -> tuple[Binding, ...]:
        return tuple(Binding(self._exchange, self._consumer.queue, pattern) for pattern in self._patterns)

    async def run(self) -> None:
        """Consume messages until cancelled."""
        if not self._is_declared:
            await self._connection.ready()
            with suppress(BrokerUnavailable):  # the consumer waits for the connection and declares it again
                await self.declare()
        self._consumer.want(PREFETCH)
        binding = asyncio.create_task(self._stay_bound(), name=f"bindings of {self._prefix}")
        try:
            await self._consumer.run()
        finally:
            binding.cancel()
            await self._consumer.close()

    async def _stay_bound(self) -> None:
        """Bind the queue every REBIND seconds: the broker does not report a deleted exchange."""
        while True:
            await asyncio.sleep(REBIND)
            if not self._connection.is_open:
                continue
            try:
                await self._connection.declare(Topology(await self._missing(), (), self._bindings()))
            except (BrokerError, ConfigurationError) as error:
                log.info("subscription.unbound", exchange=self._exchange, error=str(error))

    def _new_name(self) -> str:
        return f"{self._prefix}.{uuid4().hex}"
