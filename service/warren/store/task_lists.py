"""Lists of tasks, page by page: whatever has a row, what changed last first.

Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select

from warren.store.database import Store
from warren.store.schema import FINAL, fitting, tasks


class Position(NamedTuple):
    """A place in the order of tasks, by the time that they changed last."""

    changed_at: float
    task_id: UUID


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task as a list shows it. `agent_type` is empty for one that was cancelled before it was known."""

    task_id: UUID
    agent_type: str
    user_id: str
    status: str
    attempts: int
    worker_id: str | None
    reason: str | None
    error_type: str | None
    error_message: str | None
    created_at: float | None
    updated_at: float
    finished_at: float | None
    due_at: float | None


class TaskList:
    """The tasks of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self,
        *,
        user_id: str | None = None,
        agent_type: str | None = None,
        status: str | None = None,
        after: Position | None = None,
        limit: int,
    ) -> tuple[list[TaskLine], Position | None]:
        """At most so many tasks, and the position that others are behind; None where there are none.

        With a `user_id` these are the tasks that came in through the store (by the front door, with an
        idempotency key, by a schedule): an index of all would cost each end of a task. Without, all that
        have a row. A task that changes while somebody turns pages moves to the first one.
        """
        query = select(*(tasks.c[name] for name in TaskLine.__slots__)).where(
            *_wanted(user_id, agent_type, status), *([] if after is None else [_behind(after)])
        )
        query = query.order_by(tasks.c.updated_at.desc(), tasks.c.task_id.desc()).limit(limit + 1)
        lines = await self._store.read(
            lambda connection: [TaskLine(*row) for row in connection.execute(query)]
        )
        has_more = len(lines) > limit
        last = lines[limit - 1] if has_more else None
        return lines[:limit], None if last is None else Position(last.updated_at, last.task_id)


def _wanted(user_id: str | None, agent_type: str | None, status: str | None) -> Sequence[ColumnElement[bool]]:
    conditions = list[ColumnElement[bool]]()
    if user_id is not None:
        conditions += [tasks.c.user_id == fitting(user_id, tasks.c.user_id), tasks.c.created_at.is_not(None)]
    if agent_type is not None:
        conditions.append(tasks.c.agent_type == fitting(agent_type, tasks.c.agent_type))
    if status is not None:
        conditions.append(tasks.c.status == fitting(status, tasks.c.status))
        if status not in FINAL:
            # There is an index of these, and they are few among all that have ended.
            conditions.append(tasks.c.finished_at.is_(None))
    return conditions


def _behind(after: Position) -> ColumnElement[bool]:
    changed_at, task_id = after
    same_moment = and_(tasks.c.updated_at == changed_at, tasks.c.task_id < task_id)
    # The first half is what the index is good for.
    return and_(tasks.c.updated_at <= changed_at, or_(tasks.c.updated_at < changed_at, same_moment))
