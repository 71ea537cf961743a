"""Opening a connection to the first server of a broker that takes it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import aio_pika
from aiormq.connection import Connection as Link
from yarl import URL

from warren.bus.errors import LOST
from warren.bus.hosts import Search, Server
from warren.settings import Settings
from warren.settings.addresses import amqp_address
from warren.support.loops import cancellations, is_cancelled

# No limit to the frames that wait to be written: aiormq never wakes up whoever waits for room in this buffer
# when the connection is lost, and a publish or an acknowledgement would stay there, holding its channel.
Link.FRAME_BUFFER_SIZE = 0
# aiormq gives a silent peer up after this many times (heartbeat + 1) seconds. With its own 3 and the usual
# heartbeats a cut that no packet tells of would hold everything up for minutes.
Link.HEARTBEAT_GRACE_MULTIPLIER = 1.5  # type: ignore[assignment]

# Seconds that the end of TLS may take. asyncio's 30 would be added to the time-out of a silent server.
TLS_GOODBYE: Final = 2.0


@dataclass(frozen=True)
class Dialler:
    """Connects to one address under one name, which the broker shows for the connection."""

    url: str
    settings: Settings
    name: str

    async def dial(self, tls: ssl.SSLContext | None) -> tuple[Server, aio_pika.Connection]:
        """The first server that takes the connection. The next is tried as soon as one has failed.

        Each server has `connect_timeout`. Raises BrokerUnavailable or AccessRefused, which names every server
        with its reason.
        """
        search = self._search()
        async for server in search.servers():
            if outer := await self._try(server, search, tls):
                return server, outer
        raise search.error() from search.failures[-1][1]

    async def examine(self, tls: ssl.SSLContext | None) -> tuple[Sequence[Server], Sequence[Exception]]:
        """The servers that take a connection, each closed again, and an error for each that does not."""
        search, good = self._search(), []
        async for server in search.servers():
            if outer := await self._try(server, search, tls):
                good.append(server)
                with suppress(*LOST):
                    await outer.close()
        return good, search.told()

    def _search(self) -> Search:
        return Search(self.url, self.settings.connect_timeout)

    async def _try(
        self, server: Server, search: Search, tls: ssl.SSLContext | None
    ) -> aio_pika.Connection | None:
        """A connection, or None and a failure that the search remembers."""
        try:
            outer = await self._dial(server, tls)
        except Exception as error:  # noqa: BLE001 - bytes of a peer that is no broker can raise anything
            search.failed(server, error)
            return None
        if outer.transport is None:
            search.failed(server, ConnectionError("it closed the connection at once"))
            return None
        return outer

    async def _dial(self, server: Server, tls: ssl.SSLContext | None) -> aio_pika.Connection:
        outer = aio_pika.Connection(
            self._library_url(server), ssl_context=tls, client_properties={"connection_name": self.name}
        )
        if tls is not None:  # asyncio's names
            given = amqp_address(self.url).parameters
            outer.kwargs["server_hostname"] = given.get("server_name", server.name)
            outer.kwargs["ssl_shutdown_timeout"] = TLS_GOODBYE
        before = cancellations()
        try:
            await outer.connect(timeout=self.settings.connect_timeout)
        except BaseException as error:
            await outer.close()  # also one that never connected: its destructor would make noise
            if is_cancelled(before):  # lost when both come at once (`asyncio.wait_for` of Python 3.11)
                raise asyncio.CancelledError from error
            if isinstance(error, asyncio.CancelledError):  # not ours: aiormq's own tasks were
                raise ConnectionError("it broke off the connection") from error
            raise
        return outer

    def _library_url(self, server: Server) -> URL:
        """The server as aiormq reads it, which knows no other way to be told a heartbeat."""
        options = {"heartbeat": str(self.settings.amqp_heartbeat)}
        address = amqp_address(self.url)
        given = address.parameters
        options |= {name: given[name] for name in ("heartbeat", "auth") if name in given}
        there = replace(address.at(server.ip, server.port), parameters=options)
        return URL(there.url, encoded=True)
