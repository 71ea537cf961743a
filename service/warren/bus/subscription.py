"""What everybody is to hear who listens: messages of an exchange, on a queue of one's own."""

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

PREFETCH: Final = 1000  # such messages are small, and are dealt with at once
REBIND: Final = 5.0  # seconds between two bindings: an exchange that was deleted takes its bindings with it


class Subscription:
    """A queue that only this connection may use and that goes with it, bound to an exchange by patterns.

    `on_delivery` acknowledges; it must not block. `on_declared` is called whenever there is a new queue: what
    was published since the last one was lost is missed. `prefix` begins the queue's name. A missing
    exchange is declared where `kind` says what it is, which needs a permission that listeners do not have.
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
        """Make the queue: from now on, nothing is missed. `run` does it, where nobody has."""
        # A new name each time: until the broker has noticed that the last connection is gone, the queue
        # that was exclusive to it is locked.
        name = self._consumer.queue = self._new_name()
        await self._connection.declare(
            Topology(await self._missing(), (Queue(name, exclusive=True),), self._bindings())
        )
        self._is_declared = True
        self._on_declared()

    async def _missing(self) -> tuple[Exchange, ...]:
        """The exchange, where it is missing and ours to declare: looking needs fewer rights."""
        is_there = not self._exchanges or await self._connection.has_exchange(self._exchange)
        return () if is_there else self._exchanges

    def _bindings(self) -> tuple[Binding, ...]:
        return tuple(Binding(self._exchange, self._consumer.queue, pattern) for pattern in self._patterns)

    async def run(self) -> None:
        """Take messages in until cancelled."""
        if not self._is_declared:
            await self._connection.ready()
            with suppress(BrokerUnavailable):  # the consumer declares it again, and waits for the connection
                await self.declare()
        self._consumer.want(PREFETCH)
        binding = asyncio.create_task(self._stay_bound(), name=f"bindings of {self._prefix}")
        try:
            await self._consumer.run()
        finally:
            binding.cancel()
            await self._consumer.close()

    async def _stay_bound(self) -> None:
        """Bind the queue again and again: no broker tells that an exchange is gone."""
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
