"""Statistics of a fleet from its store: dead letters, waiting tasks, relay lag, paused agent types."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from warren.store.database import Store
from warren.store.dead_letters import IS_DEAD
from warren.store.schema import pauses, tasks


@dataclass(frozen=True, slots=True)
class StoreSight:
    """The store at one moment.

    `dead` counts dead letters by agent type. `waiting` counts tasks that wait in the store for their time or
    for a place in their queue; `due` counts those whose time has come. `lag_s` is how long the oldest due
    task has been due, in seconds. More than a second or two means that the relays do not keep up.
    """

    dead: Mapping[str, int]
    waiting: int
    due: int
    lag_s: float
    paused: frozenset[str]


async def look_into(store: Store) -> StoreSight:
    """Read the statistics once, through partial indexes. Raises StoreUnavailable or StoreUnusable."""
    now = time.time()
    dead = select(tasks.c.agent_type, func.count()).where(IS_DEAD).group_by(tasks.c.agent_type)
    # A waiting row has a due time, for every status.
    waits = select(func.count()).where(tasks.c.due_at.is_not(None))
    due = select(func.count(), func.min(tasks.c.due_at)).where(tasks.c.due_at <= now)

    def act(connection: Connection) -> StoreSight:
        letters = {name: count for name, count in connection.execute(dead)}  # noqa: C416 - see mypy
        waiting = connection.execute(waits).scalar_one()
        count, oldest = connection.execute(due).one()
        paused = frozenset(connection.execute(select(pauses.c.agent_type)).scalars())
        return StoreSight(letters, waiting, count, 0.0 if oldest is None else max(0.0, now - oldest), paused)

    return await store.read(act)
