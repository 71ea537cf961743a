"""Dialler: opens a connection to the first server of an address that accepts it."""

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

# No limit for aiormq's write buffer. With a limit, a publish or an acknowledgement waits for space in the
# buffer; if the connection is lost, aiormq never wakes it, and it keeps its channel locked.
Link.FRAME_BUFFER_SIZE = 0
# aiormq closes the connection to a silent peer after this factor times (heartbeat + 1) seconds. With its
# default of 3 and the usual heartbeats, a cut without any packet would stop all work for minutes.
Link.HEARTBEAT_GRACE_MULTIPLIER = 1.5  # type: ignore[assignment]

# Seconds for the TLS shutdown. asyncio's default of 30 would be added to the time-out of a silent server.
TLS_GOODBYE: Final = 2.0


@dataclass(frozen=True)
class Dialler:
    """Connects to one address. `name` is the connection's name in the broker's lists."""

    url: str
    settings: Settings
    name: str

    async def dial(self, tls: ssl.SSLContext | None) -> tuple[Server, aio_pika.Connection]:
        """Connect to the first server that accepts. After a failure the next server is tried at once.

        Each server has `connect_timeout` seconds. Raises BrokerUnavailable or AccessRefused, which names
        every server with its reason.
        """
        search = self._search()
        async for server in search.servers():
            if outer := await self._try(server, search, tls):
                return server, outer
        raise search.error() from search.failures[-1][1]

    async def examine(self, tls: ssl.SSLContext | None) -> tuple[Sequence[Server], Sequence[Exception]]:
        """Try every server, closing each connection: the servers that accept, and errors of the others."""
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
        """A connection, or None; then the search records the failure."""
        try:
            outer = await self._dial(server, tls)
        except Exception as error:  # noqa: BLE001 - a peer that is not a broker can cause any error
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
        if tls is not None:  # these two are arguments of asyncio
            given = amqp_address(self.url).parameters
            outer.kwargs["server_hostname"] = given.get("server_name", server.name)
            outer.kwargs["ssl_shutdown_timeout"] = TLS_GOODBYE
        before = cancellations()
        try:
            await outer.connect(timeout=self.settings.connect_timeout)
        except BaseException as error:
            await outer.close()  # needed even if it never connected: its destructor would log a warning
            if is_cancelled(before):  # `asyncio.wait_for` of Python 3.11 can swallow the cancellation
                raise asyncio.CancelledError from error
            if isinstance(error, asyncio.CancelledError):  # aiormq cancelled its own tasks, not us
                raise ConnectionError("it broke off the connection") from error
            raise
        return outer

    def _library_url(self, server: Server) -> URL:
        """The server's URL for aiormq. aiormq accepts a heartbeat only in the URL."""
        options = {"heartbeat": str(self.settings.amqp_heartbeat)}
        address = amqp_address(self.url)
        given = address.parameters
        options |= {name: given[name] for name in ("heartbeat", "auth") if name in given}
        there = replace(address.at(server.ip, server.port), parameters=options)
        return URL(there.url, encoded=True)
