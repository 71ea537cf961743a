"""Faults of what the broker holds: exchanges and queues that are deleted, rights that are taken away."""

from __future__ import annotations

import asyncio

from tests.faults.catalogue import row
from tests.faults.world import EVERYTHING, FLEET_USER, World, administrator

REVOKED = 15.0  # seconds


async def _delete_exchange(world: World, name: str) -> None:
    async with administrator(world.cluster.url) as channel:
        await channel.exchange_delete(name)


@row(lasts=1)
async def exchange_of_tasks_deleted(world: World) -> None:
    """The exchange that tasks are published to is deleted."""
    await _delete_exchange(world, world.names.tasks)


@row(lasts=1)
async def exchange_of_events_deleted(world: World) -> None:
    """The exchange of events is deleted."""
    await _delete_exchange(world, world.names.events)


@row(lasts=1)
async def exchange_of_commands_deleted(world: World) -> None:
    """The exchange of commands (control) is deleted."""
    await _delete_exchange(world, world.names.control)


@row(lasts=1)
async def exchange_of_dead_letters_deleted(world: World) -> None:
    """The exchange of dead letters is deleted."""
    await _delete_exchange(world, world.names.dlx)


@row(lasts=1, in_soak=False)
async def queue_deleted(world: World) -> None:
    """A task queue is deleted with its messages: tasks of its agent type accepted so far are excused."""
    agent_type = "quick"
    async with administrator(world.cluster.url) as channel:
        await channel.queue_delete(world.names.queue(agent_type))
    world.ledger.excuse(agent_type)


@row(lasts=REVOKED)
async def read_right_revoked(world: World) -> None:
    """The fleet's user may read nothing for 15 s, and its connections are cut."""
    await _revoke(world, ".*", ".*", "^$")


@row(lasts=REVOKED)
async def write_right_for_answers_revoked(world: World) -> None:
    """The fleet's user may not write to the default exchange, where answers go, for 15 s."""
    await _revoke(world, ".*", f"^{world.names.prefix}".replace(".", "[.]"), ".*")


async def _revoke(world: World, *patterns: str) -> None:
    await world.permissions(FLEET_USER, *patterns)
    world.fleet_door.cut()
    try:
        await asyncio.sleep(REVOKED)
    finally:
        await world.permissions(FLEET_USER, *EVERYTHING)
