"""How long the tasks in the store have been waiting."""

from __future__ import annotations

import time

from sqlalchemy import func, or_, select

from warren.store.database import Store
from warren.store.schema import PUBLISHED, RELEASED, SCHEDULED, tasks


async def longest_waits(store: Store) -> dict[str, float]:
    """By agent type: the seconds that the oldest task has waited which nobody runs and which is due.

    A task that a producer sent to its queue itself leaves no row before it ends, and is not seen here.
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
