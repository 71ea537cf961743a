"""Everything that a fault can meet: nodes, doors, processes, the store."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

import aiormq
from aiormq.abc import AbstractChannel

from tests.faults.balancer import Balancer
from tests.faults.cluster import Cluster
from tests.faults.databases import Database
from tests.faults.firewall import Firewall
from tests.faults.ledger import Ledger
from tests.fleets import STARTED_WITHIN, Fleet
from tests.rig import eventually
from warren.bus.topology import Names
from warren.testing.proxy import TcpProxy

WORKERS: Final = 3
TARGET: Final = "tests.faults.agents:app"
FLEET_USER, LOAD_USER = "fleet", "load"
EVERYTHING: Final = (".*", ".*", ".*")  # configure, write, read


@dataclass
class World:
    """What a row runs in. The fleet and the load reach the nodes through a door each, then the balancer."""

    cluster: Cluster
    firewall: Firewall
    balancer: Balancer
    fleet_door: TcpProxy
    load_door: TcpProxy
    database: Database
    fleet: Fleet
    gateway_port: int
    names: Names
    ledger: Ledger
    chance: Random
    say: Callable[[str], None]
    _starts: Counter[str] = field(default_factory=Counter)

    @property
    def doors(self) -> Sequence[TcpProxy]:
        """Both doors."""
        return (self.fleet_door, self.load_door)

    @property
    def workers(self) -> list[str]:
        """The names of the workers."""
        return sorted(name for name in self.fleet.processes if name.startswith("worker"))

    async def in_thread(self, act: Callable[..., object], *args: object) -> None:
        """Do something that blocks."""
        await asyncio.to_thread(act, *args)

    async def kill(self, name: str) -> None:
        """SIGKILL a process; it does not count as one that ended by itself."""
        process = self.fleet.processes.pop(name)
        process.kill()
        await process.wait()

    async def terminate(self, name: str) -> None:
        """SIGTERM a process, and wait for its end. Raises AssertionError when it does not end well."""
        process = self.fleet.processes.pop(name)
        process.terminate()
        assert await process.wait() == 0, f"{name} stopped with {process.returncode}"

    async def start(self, name: str, *, under: Sequence[str] = ()) -> None:
        """Start a worker, or the gateway, again. Its start is not waited for."""
        self._starts.update(["gateway" if name == "gateway" else "worker"])
        if name == "gateway":
            await self.fleet.start(name, "gateway", "--port", str(self.gateway_port))
        else:
            await self.fleet.start(name, "worker", TARGET, under=under)

    def freeze(self, *pids: int) -> None:
        """SIGSTOP."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, *pids: int) -> None:
        """SIGCONT."""
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    async def all_started(self) -> None:
        """Wait until every process that was started here has said that it is up, or has ended."""
        log = self.fleet.log

        def are_up() -> bool:
            workers, gateways = WORKERS + self._starts["worker"], 1 + self._starts["gateway"]
            return bool(self.fleet.ended()) or (log.started >= workers and len(log.addresses) >= gateways)

        await eventually(are_up, "every process starts", STARTED_WITHIN)

    async def permissions(self, user: str, *patterns: str) -> None:
        """Say what a user of the broker may configure, write, read."""
        await asyncio.to_thread(self.cluster.ctl, "set_permissions", user, *patterns)


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of the broker's administrator."""
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()
