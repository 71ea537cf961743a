"""The load balancers of the fault matrix, HAProxy and our own, do the same."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.balancer import LOOPBACK, Balancer, HaProxy, OwnBalancer, free_port
from tests.rig import PATIENCE, eventually

HOSTS = ("127.0.0.2", "127.0.0.3")


@asynccontextmanager
async def served(host: str, port: int) -> AsyncIterator[asyncio.Server]:
    """A server that says its address to each client, then echoes."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closing_of(writer):
            with suppress(ConnectionResetError):
                writer.write(f"{host}\n".encode())
                while line := await reader.readline():
                    writer.write(line)

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        talks.add(task)
        task.add_done_callback(talks.discard)

    async with await asyncio.start_server(begin, host, port) as server:
        yield server
        while talks:
            await asyncio.wait(talks)


@asynccontextmanager
async def closing_of(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection at the end, and wait until it is."""
    try:
        yield
    finally:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


class Link:
    """A connection through the balancer; `host` is the server behind it, or nothing if it was closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.host = ""

    async def echo(self, text: str) -> str:
        """What comes back; nothing where the connection was closed."""
        self._writer.write(f"{text}\n".encode())
        return await self.line()

    async def line(self) -> str:
        """The next line, or nothing."""
        try:
            async with asyncio.timeout(PATIENCE):
                return (await self._reader.readline()).decode().strip()
        except ConnectionResetError:
            return ""


@asynccontextmanager
async def link_through(balancer: Balancer) -> AsyncIterator[Link]:
    """A connection, closed at the end."""
    reader, writer = await asyncio.open_connection(LOOPBACK, balancer.port)
    async with closing_of(writer):
        link = Link(reader, writer)
        link.host = await link.line()
        yield link


async def host_behind(balancer: Balancer) -> str:
    """The server that a new connection reaches; nothing if none."""
    async with link_through(balancer) as link:
        return link.host


@pytest.fixture(params=["HAProxy", "our own"])
async def balancer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Balancer, int]]:
    """A balancer before `HOSTS`, and the port of the servers, which are not there yet."""
    if request.param == "HAProxy" and shutil.which("haproxy") is None:
        pytest.skip("there is no HAProxy on this machine")
    port = free_port()
    async with AsyncExitStack() as stack:
        made = HaProxy(tmp_path, HOSTS, port) if request.param == "HAProxy" else OwnBalancer(HOSTS, port)
        yield await stack.enter_async_context(made), port


async def test_connections_go_to_the_servers_that_live(balancer: tuple[Balancer, int]) -> None:
    before, port = balancer
    found: set[str] = set()

    async def both() -> bool:
        found.add(await host_behind(before))
        return set(HOSTS) <= found

    async def only_the_other() -> bool:
        return {await host_behind(before) for _ in HOSTS} == {HOSTS[1]}

    async with served(HOSTS[1], port):
        async with served(HOSTS[0], port):
            await eventually(both, "both are used")
            async with link_through(before) as link:
                assert await link.echo("hello") == "hello"
        await eventually(only_the_other, "the one that is gone is not used")


async def test_without_a_live_server_connections_are_taken_and_closed(
    balancer: tuple[Balancer, int],
) -> None:
    before, port = balancer
    async with served(HOSTS[0], port):
        await eventually(lambda: host_behind(before), "a connection goes through")
        async with link_through(before) as link:
            assert link.host
            await before.close_all()
            assert await link.echo("hello") == ""
        assert await host_behind(before) == ""
        await before.open_all()
        await eventually(lambda: host_behind(before), "a connection goes through again")
        async with link_through(before) as link:
            assert await link.echo("hello") == "hello"
