"""Builds a world and takes it down again: what all rows share, and what is made anew for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

from tests.faults.balancer import LOOPBACK, Balancer, balancer, free_port
from tests.faults.cluster import AMQP, Cluster
from tests.faults.databases import Kind, database
from tests.faults.firewall import Firewall, firewall
from tests.faults.ledger import Ledger
from tests.faults.load import Load, Target
from tests.faults.producer import Producer
from tests.faults.world import (
    EVERYTHING,
    FLEET_USER,
    LOAD_USER,
    TARGET,
    WORKERS,
    World,
    administrator,
)
from tests.fleets import fleet
from warren.bus.topology import Names, Profile, keeping_queue
from warren.store.database import Store
from warren.store.keys import Keys
from warren.testing.proxy import TcpProxy

PASSWORD: Final = "faults"
# All others are the defaults, with which the load would be refused, or wait a minute for a breaker.
SETTINGS: Final[dict[str, Any]] = {
    "queue_capacity": 50_000,
    "outbox_capacity": 1_000_000,
    "max_tasks_per_user": 1_000_000,
    "gateway_rate": 1_000_000,
    "gateway_burst": 1_000_000,
    "breaker_reset_timeout": 5,
    "log_level": "info",
}


@dataclass
class Stage:
    """What all rows share: nodes, a balancer, a firewall, and a folder."""

    cluster: Cluster
    firewall: Firewall
    balancer: Balancer
    folder: Path
    profile: Profile = "quorum"

    async def restore(self) -> None:
        """Undo every change."""
        self.firewall.clear()
        await self.balancer.open_all()
        await asyncio.to_thread(self.cluster.restore)


@asynccontextmanager
async def stage(nodes: int, folder: Path) -> AsyncIterator[Stage]:
    """A cluster with its users, behind a balancer. All of it is gone at the end."""
    async with AsyncExitStack() as stack:
        rules = stack.enter_context(firewall())
        made = Cluster(nodes, folder, rules)
        stack.callback(made.remove)
        await asyncio.to_thread(made.create)
        await asyncio.to_thread(add_users, made)
        before = await stack.enter_async_context(balancer(folder, [node.ip for node in made.nodes], AMQP))
        yield Stage(made, rules, before, folder)


def add_users(cluster: Cluster) -> None:
    """Make the users of fleet and load."""
    for user in (FLEET_USER, LOAD_USER):
        cluster.ctl("add_user", user, PASSWORD)
        cluster.ctl("set_permissions", user, *EVERYTHING)


def remove_users(cluster: Cluster) -> None:
    """Delete the users of fleet and load."""
    for user in (FLEET_USER, LOAD_USER):
        cluster.ctl("delete_user", user)


@asynccontextmanager
async def world(
    on: Stage, kind: Kind, seed: int, say: Callable[[str], None], *, small_disk: bool = False
) -> AsyncIterator[tuple[World, Load, Store]]:
    """A namespace with a store, a fleet, and a load of their own; and our own look at the store."""
    namespace = f"faults-{uuid4().hex[:8]}"
    folder = on.folder / namespace
    folder.mkdir()
    folder.chmod(0o755)
    ledger, chance, names = Ledger(), Random(seed), Names(namespace)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_delete_queues, on.cluster, namespace)  # when no process has one any more
        stack.push_async_callback(on.restore)
        store_of = await stack.enter_async_context(database(kind, folder / "disk", small_disk=small_disk))
        store = await stack.enter_async_context(Store(store_of.url))
        _, secret = await Keys(store).create("load", "admin")
        doors = [await stack.enter_async_context(TcpProxy(LOOPBACK, on.balancer.port)) for _ in range(2)]
        port = free_port()
        told = {
            **SETTINGS,
            "amqp_url": f"amqp://{FLEET_USER}:{PASSWORD}@{LOOPBACK}:{doors[0].port}/",
            "store_url": store_of.url,
            "namespace": namespace,
        }
        running = await stack.enter_async_context(fleet(folder / "fleet.log", TARGET, WORKERS, port, **told))
        here = World(
            on.cluster, on.firewall, on.balancer, doors[0], doors[1], store_of, running, port, names, ledger,
            chance, say,
        )  # fmt: skip
        producer = await stack.enter_async_context(
            Producer(
                f"amqp://{LOAD_USER}:{PASSWORD}@{LOOPBACK}:{doors[1].port}/",
                keeping_queue(f"answers-{namespace}", on.profile),
                lambda body, redelivered: ledger.answered(body, redelivered=redelivered),
            )
        )
        target = Target(names, folder / "effects", f"http://{LOOPBACK}:{port}", secret)
        yield here, Load(target, producer, ledger, Random(seed)), store


async def _delete_queues(cluster: Cluster, namespace: str) -> None:
    """Leave no queue behind for the next row."""
    listed = await asyncio.to_thread(cluster.ctl, "list_queues", "name", "--no-table-headers")
    async with administrator(cluster.url) as channel:
        for name in listed.split():
            if namespace in name:
                await channel.queue_delete(name)
