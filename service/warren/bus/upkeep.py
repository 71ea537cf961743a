"""Topology upkeep: detects deleted exchanges and declares everything again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import uuid4

import structlog

from warren.bus.connection import Connection, Message
from warren.bus.messages import new_id
from warren.bus.publisher import Publisher
from warren.bus.topology import Binding, Names, Queue, Topology
from warren.errors import BrokerError, Unroutable

log = structlog.get_logger(__name__)

INTERVAL: Final = 5.0  # seconds between two checks


class Upkeep:
    """Keeps a worker's task exchange and dead-letter exchange declared and bound.

    A deleted exchange loses its bindings, and the broker does not report it. If another process declares it
    again, the exchange exists, but our bindings are missing. So the worker binds a small queue of its own to
    the task exchange, like the task queues, and publishes a message there at each check. The broker returns
    the message if the bindings are gone.

    `declare` declares everything that the worker needs.
    """

    def __init__(self, connection: Connection, names: Names, declare: Callable[[], Awaitable[None]]) -> None:
        self._connection, self._names, self._declare = connection, names, declare
        self._publisher = Publisher(connection)
        self._queue = self._new_name()
        self._bound_at: int | None = None  # the connection's number of reconnects when our queue was bound

    async def run(self) -> None:
        """Check every `INTERVAL` seconds until cancelled."""
        while True:
            await self._connection.ready()
            try:
                if not await self._is_whole():
                    await self._declare_again()
            except BrokerError as error:
                log.warning("topology.waits", error=str(error))
            await asyncio.sleep(INTERVAL)

    async def _is_whole(self) -> bool:
        """Whether our binding to the task exchange and the dead-letter exchange both exist."""
        message = Message(self._names.tasks, self._queue, b"", str(new_id()), expiration=INTERVAL)
        try:
            await self._publisher.publish(message)
        except Unroutable:
            return False
        return await self._connection.has_exchange(self._names.dlx)

    async def _declare_again(self) -> None:
        if self._bound_at == self._connection.reconnects:  # else only our own queue is missing
            log.warning("topology.declared_again", reason="an exchange was deleted, or made without bindings")
        await self._declare()
        # A new name each time: the queue is exclusive, and the last connection's may still be locked.
        self._queue = self._new_name()
        queue = Queue(self._queue, {"x-max-length": 1}, exclusive=True)
        binding = Binding(self._names.tasks, self._queue, self._queue)
        await self._connection.declare(Topology((), (queue,), (binding,)))
        self._bound_at = self._connection.reconnects

    def _new_name(self) -> str:
        return f"{self._names.control}.upkeep.{uuid4().hex}"
