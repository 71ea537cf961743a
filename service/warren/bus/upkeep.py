"""Upkeep of the topology: notices exchanges that were deleted, and declares everything again."""

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

INTERVAL: Final = 5.0  # seconds between two looks


class Upkeep:
    """Looks after the exchanges of one worker's tasks and dead letters.

    An exchange that is deleted takes its bindings with it, and no broker tells anybody. When another process
    has made it again, it is there, but without our bindings. So a queue of our own is bound to it as the task
    queues are, and a small message sent there now and then: it comes back when the bindings are gone.

    `declare` declares everything that the worker needs.
    """

    def __init__(self, connection: Connection, names: Names, declare: Callable[[], Awaitable[None]]) -> None:
        self._connection, self._names, self._declare = connection, names, declare
        self._publisher = Publisher(connection)
        self._queue = self._new_name()
        self._bound_at: int | None = None  # the connection's number of reconnects when our queue was bound

    async def run(self) -> None:
        """Look every `INTERVAL` seconds, for ever."""
        while True:
            await self._connection.ready()
            try:
                if not await self._is_whole():
                    await self._declare_again()
            except BrokerError as error:
                log.warning("topology.waits", error=str(error))
            await asyncio.sleep(INTERVAL)

    async def _is_whole(self) -> bool:
        """Whether our binding to the task exchange is there, and the dead-letter exchange."""
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
        # Exclusive to this connection, and of a new name: that of the last connection may still be locked.
        self._queue = self._new_name()
        queue = Queue(self._queue, {"x-max-length": 1}, exclusive=True)
        binding = Binding(self._names.tasks, self._queue, self._queue)
        await self._connection.declare(Topology((), (queue,), (binding,)))
        self._bound_at = self._connection.reconnects

    def _new_name(self) -> str:
        return f"{self._names.control}.upkeep.{uuid4().hex}"
