"""Asking a server the same again and again, over keep-alive connections, for benchmarks."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop


@dataclass(frozen=True)
class Load:
    """So many POST requests of one body, for `seconds` at most. Each answer is a 202 with `wanted` in it."""

    path: str
    body: bytes
    wanted: bytes
    requests: int
    seconds: float


@dataclass
class Answers:
    """How long each answer took, and all of them together, in seconds; and the client's CPU time."""

    seconds: float
    cpu: float
    times: list[float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.times) / self.seconds


LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Asker:
    """One keep-alive connection, with as little of HTTP as it takes to ask the same again and again."""

    def __init__(self, address: str, key: str, load: Load) -> None:
        self._host, self._port = urlsplit(address).hostname, urlsplit(address).port
        head = (
            f"POST {load.path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(load.body)}\r\n\r\n"
        )
        self._request = head.encode() + load.body
        self._wanted = load.wanted

    async def open(self) -> None:
        """Connect, and ask once."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        await self.ask()

    async def ask(self) -> float:
        """Seconds to the end of the answer. Raises RuntimeError when not everything was let in."""
        start = time.perf_counter()
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        seconds = time.perf_counter() - start
        if not head.startswith(b"HTTP/1.1 202 ") or self._wanted not in body:
            raise RuntimeError(f"not let in: {(head + body).decode()}")
        return seconds

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()


async def asked(address: str, keys: Sequence[str], load: Load) -> Answers:
    """Ask on a connection for each key until there is nothing left to ask, or the time is over."""
    askers = [Asker(address, key, load) for key in keys]
    turns, times = iter(range(load.requests)), list[float]()

    async def keep_asking(asker: Asker) -> None:
        for _ in turns:
            times.append(await asker.ask())
            if time.perf_counter() - start > load.seconds:
                return

    async with asyncio.timeout(2 * load.seconds + 10):
        await asyncio.gather(*(asker.open() for asker in askers))
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(keep_asking(asker) for asker in askers))
        answers = Answers(time.perf_counter() - start, time.process_time() - cpu, times)
        await asyncio.gather(*(asker.close() for asker in askers))
    return answers


def ask(address: str, keys: Sequence[str], load: Load) -> Answers:
    """The same as a plain function, for a process of its own."""
    return uvloop.run(asked(address, keys, load))
