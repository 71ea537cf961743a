"""The proxy for fault tests, in front of a server that sends everything back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.rig import eventually
from warren.testing.proxy import TcpProxy

SOON = 5.0  # seconds: what happens at all happens in milliseconds
NOTHING = 0.1  # seconds in which something that must not happen would have happened


class Echo:
    """A server that sends back what it gets, and counts how its connections end."""

    def __init__(self) -> None:
        self.open = self.closed = self.reset = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while data := await reader.read(1000):
                writer.write(data)
            self.closed += 1
        except ConnectionResetError:
            self.reset += 1
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    server = Echo()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        yield server, listening.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy(echo: tuple[Echo, int]) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", echo[1]) as proxy:
        yield proxy


class Caller:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, proxy: TcpProxy) -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, text: bytes) -> bytes:
        self.writer.write(text)
        return await asyncio.wait_for(self.reader.readexactly(len(text)), SOON)


async def is_reset(proxy: TcpProxy) -> None:
    """A new connection through the proxy is reset, at once or before anything arrives on it."""
    caller = await Caller.of(proxy)
    await asyncio.wait_for(caller.reader.read(1), SOON)


async def test_it_passes_on_both_ways(proxy: TcpProxy) -> None:
    first, second = await Caller.of(proxy), await Caller.of(proxy)
    assert await first.ask(b"one") == b"one"
    assert await second.ask(b"two" * 100_000) == b"two" * 100_000
    assert proxy.connections == 2
    first.writer.close()
    second.writer.close()


async def test_a_close_is_passed_on_after_the_data(proxy: TcpProxy, echo: tuple[Echo, int]) -> None:
    caller = await Caller.of(proxy)
    await caller.ask(b"x")
    caller.writer.close()
    await eventually(lambda: (echo[0].closed, echo[0].open, proxy.connections) == (1, 0, 0))


async def test_a_cut_resets_both_sides_and_new_connections_work(
    proxy: TcpProxy, echo: tuple[Echo, int]
) -> None:
    callers = [await Caller.of(proxy) for _ in range(3)]
    for caller in callers:
        await caller.ask(b"hello")
    assert proxy.cut() == 3
    for caller in callers:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(caller.reader.read(1), SOON)
    await eventually(lambda: (echo[0].reset, proxy.connections) == (3, 0))
    again = await Caller.of(proxy)
    assert await again.ask(b"again") == b"again"
    again.writer.close()


async def test_a_pause_holds_everything_up_and_loses_nothing(proxy: TcpProxy, echo: tuple[Echo, int]) -> None:
    caller = await Caller.of(proxy)
    await caller.ask(b"before")
    proxy.pause()
    caller.writer.write(b"during")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(caller.reader.read(1), NOTHING)
    proxy.resume()
    assert await asyncio.wait_for(caller.reader.readexactly(6), SOON) == b"during"
    proxy.pause()
    caller.writer.close()
    await asyncio.sleep(NOTHING)
    assert echo[0].open == 1
    proxy.resume()
    await eventually(lambda: echo[0].open == 0)


async def test_a_cut_reaches_a_paused_connection(proxy: TcpProxy) -> None:
    caller = await Caller.of(proxy)
    await caller.ask(b"before")
    proxy.pause()
    caller.writer.write(b"held up")
    await asyncio.sleep(NOTHING)
    newcomer = await Caller.of(proxy)
    await eventually(lambda: proxy.connections == 2)
    proxy.cut()
    for cut in (caller, newcomer):
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(cut.reader.read(1), SOON)
    await eventually(lambda: proxy.connections == 0)


async def test_newcomers_are_refused_until_they_are_accepted(proxy: TcpProxy) -> None:
    caller = await Caller.of(proxy)
    await caller.ask(b"before")
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        await is_reset(proxy)
    assert await caller.ask(b"stays") == b"stays"
    proxy.accept()
    again = await Caller.of(proxy)
    assert await again.ask(b"again") == b"again"
    for open_one in (caller, again):
        open_one.writer.close()


async def test_a_server_that_is_not_there_resets_the_caller(unused_port: int) -> None:
    async with TcpProxy("127.0.0.1", unused_port) as proxy:
        with pytest.raises(ConnectionResetError):
            await is_reset(proxy)


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return port


async def test_leaving_it_ends_its_connections(echo: tuple[Echo, int]) -> None:
    async with TcpProxy("127.0.0.1", echo[1]) as proxy:
        caller = await Caller.of(proxy)
        await caller.ask(b"before")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(caller.reader.read(1), SOON)


async def test_a_url_through_the_proxy_keeps_all_but_the_address(proxy: TcpProxy) -> None:
    url = proxy.url_for("amqp://me:s%40cret@rabbit.internal:5672/%2Fvhost?heartbeat=5")
    assert url == f"amqp://me:s%40cret@127.0.0.1:{proxy.port}/%2Fvhost?heartbeat=5"
    assert proxy.url_for("amqp://rabbit.internal/") == f"amqp://127.0.0.1:{proxy.port}/%2F"
    with pytest.raises(ValueError, match="certificate"):
        proxy.url_for("amqps://rabbit.internal/")
