"""Waiting times of the tasks in the store."""

from __future__ import annotations

import time

from sqlalchemy import func, or_, select

from warren.store.database import Store
from warren.store.schema import PUBLISHED, RELEASED, SCHEDULED, tasks


async def longest_waits(store: Store) -> dict[str, float]:
    """The longest wait of a due task that does not run, in seconds, by agent type.

    A task that a producer published directly has no row before it ends, and does not count here.
    """
    now = time.time()
    since = func.min(func.coalesce(tasks.c.due_at, tasks.c.created_at, tasks.c.updated_at))
    query = (
        select(tasks.c.agent_type, since)
        .where(
            tasks.c.finished_at.is_(None),
            tasks.c.status.in_((SCHEDULED, PUBLISHED, RELEASED)),
            or_(tasks.c.due_at.is_(None), tasks.c.due_at <= now),
        )
        .group_by(tasks.c.agent_type)
    )
    return await store.read(
        lambda connection: {name: max(0.0, now - oldest) for name, oldest in connection.execute(query)}
    )
