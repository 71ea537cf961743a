"""Server search: every host of a broker address, and every network address of a host."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from warren.bus.errors import why_not_connected
from warren.errors import AccessRefused, BrokerUnavailable
from warren.settings.addresses import Host, amqp_address, without_password

PORTS: Final = {"amqp": 5672, "amqps": 5671}

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """One network address of one host. `name` is the host as written; certificates are verified for it."""

    name: str
    ip: str
    port: int

    def __str__(self) -> str:
        where = f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"
        return where if self.ip == self.name else f"{where} ({self.ip})"


class Search:
    """One round over the servers of an address. It records why servers failed.

    The order is random, so that a fleet spreads over a cluster, and a server that is down is not the first
    for every connection. RabbitMQ's Java client shuffles as well. Each host name is resolved when its turn
    comes, so a slow name server delays only its own host. `timeout` is in seconds, for one look-up.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self.failures: list[tuple[str, Exception]] = []

    async def servers(self) -> AsyncIterator[Server]:
        """Yield each server once. A host whose name cannot be resolved counts as a failure."""
        address = amqp_address(self._url)
        for host in _shuffled(address.hosts):
            port = host.port or PORTS[address.scheme]
            try:
                found = await _look_up(host, port, self._timeout)
            except OSError as error:
                self.failed(Server(host.name, host.name, port), error)
                continue
            for server in _shuffled(found):
                yield server

    def failed(self, server: Server, error: Exception) -> None:
        """Record why this server failed; `error` comes from the libraries."""
        self.failures.append((str(server), error))

    def told(self) -> list[Exception]:
        """Warren's error for each failure, sorted by the servers' names."""
        return [why_not_connected(error, self._url, where) for where, error in sorted(self.failures, key=str)]

    def error(self) -> Exception:
        """One error for a round in which every server failed.

        It is AccessRefused if a server refused the user: an answer says more than a time-out.
        """
        where = without_password(self._url)
        if len(self.failures) == 1:
            return why_not_connected(self.failures[0][1], self._url, where)
        told = self.told()
        refused = any(isinstance(one, AccessRefused) for one in told)
        reasons = "; ".join(str(one) for one in told)
        return (AccessRefused if refused else BrokerUnavailable)(
            f"{where}: no server takes the connection: {reasons}"
        )


def _shuffled(some: Sequence[T]) -> list[T]:
    return random.sample(some, len(some))


async def _look_up(host: Host, port: int, timeout: float) -> list[Server]:
    """Every network address of a host. Raises OSError."""
    try:
        async with asyncio.timeout(timeout):
            found = await asyncio.get_running_loop().getaddrinfo(
                host.name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
    except TimeoutError as error:
        raise OSError(f"its name was not resolved within {timeout:g} s") from error
    except UnicodeError as error:  # an empty label, or one of more than 63 characters
        raise OSError(f"{host.name!r} is no host name: {error}") from error
    return list(dict.fromkeys(Server(host.name, _ip(place), port) for *_, place in found))


def _ip(place: tuple[Any, ...]) -> str:
    """The IP address of a socket address. A link-local one needs its scope (RFC 4007)."""
    scope = place[3] if len(place) == 4 else 0
    return f"{place[0]}%{scope}" if scope else str(place[0])
