"""Faults of the network between the fleet, its producers and the broker."""

from __future__ import annotations

import asyncio

from tests.faults.catalogue import row
from tests.faults.firewall import Firewall
from tests.faults.world import World

SILENCE = 40.0  # seconds: over what a heartbeat of 9 s needs to be missed


@row(lasts=15)
async def balancer_without_a_node(world: World) -> None:
    """The load balancer knows no live node for 15 s: it closes every connection, and new ones at once."""
    await world.balancer.close_all()
    try:
        await asyncio.sleep(15)
    finally:
        await world.balancer.open_all()


@row(lasts=10)
async def all_connections_cut(world: World) -> None:
    """Every AMQP connection is reset, three times in 10 s."""
    for pause in (5, 5, 0):
        for door in world.doors:
            door.cut()
        await asyncio.sleep(pause)


@row(lasts=SILENCE)
async def silent_cut(world: World) -> None:
    """All packets to and from the broker are dropped without a word, for 40 s."""
    if Firewall.is_usable():
        world.firewall.drop_at(*(door.port for door in world.doors))
    else:
        for door in world.doors:
            door.pause()
    try:
        await asyncio.sleep(SILENCE)
    finally:
        world.firewall.clear()
        for door in world.doors:
            door.resume()


@row(lasts=12)
async def confirms_lost(world: World) -> None:
    """What the broker sends is held up for 12 s, confirms too; then all connections are cut."""
    for door in world.doors:
        door.hold_answers()
    try:
        await asyncio.sleep(12)
    finally:
        for door in world.doors:
            door.cut()
            door.resume()
