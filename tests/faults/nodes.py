"""Faults of RabbitMQ nodes, and of the network between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.faults.catalogue import Need, row
from tests.faults.cluster import Node
from tests.faults.firewall import Firewall
from tests.faults.world import World

PARTITIONED = 20.0  # seconds
ALARMED = 15.0  # seconds
IPTABLES = Need("iptables, as root", Firewall.is_usable)


def _any_node(world: World) -> Node:
    return world.chance.choice(list(world.cluster.nodes))


async def _back(world: World) -> None:
    await world.in_thread(world.cluster.restore)


@row(lasts=30)
async def node_restarted(world: World) -> None:
    """One node is stopped and started."""
    node = _any_node(world)
    await world.in_thread(node.stop)
    await world.in_thread(node.start)
    await _back(world)


@row(lasts=30)
async def node_killed(world: World) -> None:
    """One node is killed (SIGKILL) and started 5 s later."""
    node = _any_node(world)
    await world.in_thread(node.kill)
    await asyncio.sleep(5)
    await world.in_thread(node.start)
    await _back(world)


@row(lasts=35)
async def all_nodes_killed(world: World) -> None:
    """All nodes are killed (SIGKILL) together and started 5 s later."""
    await world.in_thread(world.cluster.each, Node.kill)
    await asyncio.sleep(5)
    await world.in_thread(world.cluster.each, Node.start)
    await _back(world)


@row(lasts=75, nodes=3)
async def nodes_restarted_in_turn(world: World) -> None:
    """A rolling restart: each node is stopped and started when the one before is back."""
    for node in world.cluster.nodes:
        await world.in_thread(node.stop)
        await world.in_thread(node.start)
        await _back(world)


@row(lasts=PARTITIONED, nodes=3, needs=IPTABLES)
async def node_partitioned(world: World) -> None:
    """One node does not reach the others for 20 s, while clients reach all of them."""
    await _partition(world, [_any_node(world)])


@row(lasts=PARTITIONED, nodes=3, needs=IPTABLES)
async def all_nodes_partitioned(world: World) -> None:
    """No node reaches another for 20 s, while clients reach all of them."""
    await _partition(world, *([node] for node in world.cluster.nodes))


async def _partition(world: World, *islands: list[Node]) -> None:
    await world.in_thread(world.cluster.partition, *islands)
    try:
        await asyncio.sleep(PARTITIONED)
    finally:
        await world.in_thread(world.firewall.clear)
    await _back(world)


@row(lasts=PARTITIONED, nodes=3)
async def node_disconnected(world: World) -> None:
    """One node is off the network for 20 s: neither nodes nor clients reach it."""
    node = _any_node(world)
    await world.in_thread(world.cluster.disconnect, node)
    try:
        await asyncio.sleep(PARTITIONED)
    finally:
        await world.in_thread(world.cluster.connect, node)
    await _back(world)


@row(lasts=ALARMED)
async def memory_alarm(world: World) -> None:
    """All nodes raise their memory alarm for 15 s: the broker blocks all who publish."""
    await _alarmed(world, world.cluster.alarm_memory)


@row(lasts=ALARMED)
async def disk_alarm(world: World) -> None:
    """All nodes raise their disk alarm for 15 s: the broker blocks all who publish."""
    await _alarmed(world, world.cluster.alarm_disk)


async def _alarmed(world: World, alarm: Callable[[], None]) -> None:
    await world.in_thread(alarm)
    try:
        await asyncio.sleep(ALARMED)
    finally:
        await world.in_thread(world.cluster.clear_alarms)
