"""A TCP load balancer before the nodes: the real HAProxy where it is installed, otherwise our own.

Both check every half second which nodes take connections, and close the connections to a node that does not.
Without a live node they take a connection and close it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, Self

from tests.rig import eventually

LOOPBACK: Final = "127.0.0.1"
LOOKS: Final = 0.5  # seconds between two checks of a node
CONFIGURATION: Final = """
global
    maxconn 2000
    stats socket {socket} level admin
defaults
    mode tcp
    timeout connect 3s
    timeout client 1h
    timeout server 1h
    retries 2
    option redispatch
listen rabbitmq
    bind 127.0.0.1:{port}
    balance roundrobin
    default-server check inter 500ms fall 2 rise 2 on-marked-down shutdown-sessions
"""


class Balancer(Protocol):
    """What stands before the nodes, on a port of 127.0.0.1."""

    name: str
    port: int

    async def close_all(self) -> None:
        """Believe that no node lives: close every connection, and each new one at once."""

    async def open_all(self) -> None:
        """Use the nodes again."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


class HaProxy:
    """HAProxy, steered through its socket."""

    name = "HAProxy"

    def __init__(self, folder: Path, hosts: Sequence[str], port: int) -> None:
        self.port = free_port()
        self._servers = [f"node{number}" for number in range(len(hosts))]
        self._socket = folder / "haproxy.sock"
        self._file = folder / "haproxy.cfg"
        servers = zip(self._servers, hosts, strict=True)
        lines = "".join(f"    server {server} {host}:{port}\n" for server, host in servers)
        self._file.write_text(CONFIGURATION.format(socket=self._socket, port=self.port) + lines)
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        # In the foreground, and not a child of the terminal's: Ctrl-C is ours to pass on.
        self._process = await asyncio.create_subprocess_exec(
            *("haproxy", "-db", "-f", str(self._file)), stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
        await eventually(self._socket.exists, "HAProxy listens")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def close_all(self) -> None:
        """Believe that no node lives."""
        for server in self._servers:
            await self._say(f"disable server rabbitmq/{server}")
            await self._say(f"shutdown sessions server rabbitmq/{server}")

    async def open_all(self) -> None:
        """Use the nodes again."""
        for server in self._servers:
            await self._say(f"enable server rabbitmq/{server}")

    async def _say(self, command: str) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        writer.write(f"{command}\n".encode())
        answer = (await reader.read()).decode().strip()
        writer.close()
        if answer:
            raise RuntimeError(f"HAProxy says to `{command}`: {answer}")


class OwnBalancer:
    """Passes connections on to the nodes in turn."""

    name = "our own proxy"

    def __init__(self, hosts: Sequence[str], port: int) -> None:
        self.port = 0
        self._targets = [(host, port) for host in hosts]
        self._alive: list[tuple[str, int]] = []
        self._turns = itertools.count()
        self._links: dict[asyncio.Task[None], tuple[str, int]] = {}
        self._is_open = True

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        await self._look()
        self._looking = asyncio.create_task(self._look_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._looking.cancel()
        self._server.close()
        await self.close_all()

    async def close_all(self) -> None:
        """Believe that no node lives."""
        self._is_open, self._alive = False, []
        await self._close_dead()

    async def open_all(self) -> None:
        """Use the nodes again."""
        self._is_open = True
        await self._look()

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOKS)
            await self._look()

    async def _look(self) -> None:
        if self._is_open:
            answers = await asyncio.gather(*(_answers(target) for target in self._targets))
            self._alive = [target for target, alive in zip(self._targets, answers, strict=True) if alive]
            await self._close_dead()

    async def _close_dead(self) -> None:
        dead = [link for link, target in self._links.items() if target not in self._alive]
        for link in dead:
            link.cancel()
        await asyncio.gather(*dead, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._alive:
            writer.close()
            return
        target = self._alive[next(self._turns) % len(self._alive)]
        link = asyncio.create_task(_serve(reader, writer, target))
        self._links[link] = target
        link.add_done_callback(lambda link: self._links.pop(link, None))


async def _answers(target: tuple[str, int]) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(*target)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]) -> None:
    with suppress(OSError):
        try:
            far_reader, far = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        ways = [asyncio.create_task(_pass_on(reader, far)), asyncio.create_task(_pass_on(far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far.close()
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def balancer(folder: Path, hosts: Sequence[str], port: int) -> AsyncIterator[Balancer]:
    """A balancer that takes connections."""
    made = HaProxy(folder, hosts, port) if shutil.which("haproxy") else OwnBalancer(hosts, port)
    async with made as running:
        yield running
