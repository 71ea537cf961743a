"""Tools to test an application on Warren against faults: a TCP proxy that breaks connections on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Self

import structlog

from warren.addresses import amqp_address

log = structlog.get_logger(__name__)

LOOPBACK: Final = "127.0.0.1"
CHUNK: Final = 64 * 1024  # bytes read at once
LINGER_NOT: Final = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: on, 0 seconds, so close() sends RST


class TcpProxy:
    """A TCP proxy on 127.0.0.1 in front of a broker, or of any other server.

        async with TcpProxy("rabbit.internal", 5672) as proxy:
            async with Client(proxy.url_for("amqp://guest:guest@rabbit.internal/")) as client:
                ...
                proxy.cut()

    It is used from the event loop that it was entered in. When one side closes, what it still sent is passed
    on and the other side is closed. Leaving resets every connection.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        links = tuple(self._links)
        self.cut()
        await asyncio.gather(*links, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port that the proxy listens on."""
        if self._server is None:
            raise RuntimeError("TcpProxy is not entered")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections go through the proxy right now."""
        return len(self._links)

    def url_for(self, url: str) -> str:
        """The same URL, through the proxy. Raises ValueError for `amqps`: a certificate names its host."""
        address = amqp_address(url)
        if address.scheme == "amqps":
            raise ValueError("a certificate would not fit the address of the proxy: take an amqp:// URL")
        return address.at(LOOPBACK, self.port).url

    def cut(self) -> int:
        """Break every connection off, with a reset (RST) to both sides. Returns how many there were."""
        links = dict(self._links)
        for link, writers in links.items():
            for writer in writers:
                _reset(writer)
            link.cancel()
        return len(links)

    def pause(self) -> None:
        """Stop passing anything on, closes included, but keep every connection: a frozen network."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on again, beginning with what was held up."""
        self._flowing.set()

    def refuse(self) -> None:
        """From now on, reset new connections as soon as they come in; those that are there stay."""
        self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    # -- below the surface ----------------------------------------------------------------------------

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        link = asyncio.create_task(self._serve(reader, writer), name="proxy link")
        self._links[link] = [writer]
        link.add_done_callback(self._ended)

    def _ended(self, link: asyncio.Task[None]) -> None:
        del self._links[link]
        if not link.cancelled() and (error := link.exception()) is not None:
            log.error("proxy.failed", exc_info=error)

    async def _serve(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """Connect to the server, and pass on in both directions until one of them ends."""
        await self._flowing.wait()
        try:
            far_reader, far = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            log.info("proxy.unreachable", host=self._host, port=self._port, error=str(error))
            _reset(near)
            return
        link = asyncio.current_task()
        assert link is not None
        self._links[link].append(far)
        directions = {
            asyncio.create_task(self._pass_on(near_reader, far)),
            asyncio.create_task(self._pass_on(far_reader, near)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            for writer in (near, far):
                writer.close()  # what was written before still leaves
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError as error:  # one of the sides is gone: for the other that is an end like any
            log.debug("proxy.lost", error=str(error))
        await self._flowing.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye."""
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    writer.transport.abort()
