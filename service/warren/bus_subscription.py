"""What everybody is to hear who listens: messages of an exchange, on a queue of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal
from uuid import uuid4

from warren.bus import Connection
from warren.bus_consumer import Consumer
from warren.bus_delivery import Delivery
from warren.errors import BrokerUnavailable
from warren.topology import Binding, Exchange, Queue, Topology

PREFETCH: Final = 1000  # such messages are small, and are dealt with at once


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
        is_there = not self._exchanges or await self._connection.has_exchange(self._exchange)
        await self._connection.declare(
            Topology(
                () if is_there else self._exchanges,
                (Queue(name, exclusive=True),),
                tuple(Binding(self._exchange, name, pattern) for pattern in self._patterns),
            )
        )
        self._is_declared = True
        self._on_declared()

    async def run(self) -> None:
        """Take messages in until cancelled."""
        if not self._is_declared:
            await self._connection.ready()
            with suppress(BrokerUnavailable):  # the consumer declares it again, and waits for the connection
                await self.declare()
        self._consumer.want(PREFETCH)
        try:
            await self._consumer.run()
        finally:
            await self._consumer.close()

    def _new_name(self) -> str:
        return f"{self._prefix}.{uuid4().hex}"
