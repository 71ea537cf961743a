"""A TCP proxy that breaks connections on demand, for testing an application on Warren against faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, Self

import structlog

from warren.settings.addresses import amqp_address

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
        self._answering = asyncio.Event()
        self.resume()
        self._refusing: Callable[[asyncio.StreamWriter], None] | None = None
        self._limit: int | None = None
        self.refused = 0  # connections that were reset or closed at once so far

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

    def hold_answers(self) -> None:
        """Pass on what clients send, and hold back what the server answers: confirms are late, or lost."""
        self._answering.clear()

    def resume(self) -> None:
        """Forward again, beginning with the bytes that were held back."""
        self._flowing.set()
        self._answering.set()

    def refuse(self) -> None:
        """From now on, reset each new connection at once; existing connections stay."""
        self._refusing = _reset

    def close_at_once(self) -> None:
        """From now on, accept new connections and close them: a load balancer without a live server."""
        self._refusing = asyncio.StreamWriter.close

    def break_after(self, count: int) -> None:
        """From now on, close each new connection when so many bytes have come from the server."""
        self._limit = count

    def accept(self) -> None:
        """Take new connections again, without a limit."""
        self._refusing = self._limit = None

    # -- below the surface ----------------------------------------------------------------------------

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing is not None:
            self.refused += 1
            self._refusing(writer)
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
            asyncio.create_task(self._pass_on(near_reader, far, None, self._flowing)),
            asyncio.create_task(self._pass_on(far_reader, near, self._limit, self._flowing, self._answering)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            for writer in (near, far):
                writer.close()  # bytes written before are still sent
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
        *gates: asyncio.Event,
    ) -> None:
        try:
            while limit != 0 and (data := await reader.read(min(CHUNK, limit or CHUNK))):
                for gate in gates:
                    await gate.wait()
                writer.write(data)
                await writer.drain()
                limit = None if limit is None else limit - len(data)
        except OSError as error:  # one of the sides is gone: for the other that is an end like any
            log.debug("proxy.lost", error=str(error))
        for gate in gates:
            await gate.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye."""
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    writer.transport.abort()
