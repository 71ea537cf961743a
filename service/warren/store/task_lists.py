"""Paged lists of the tasks in the store, the last changed first.

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
    """A place in the order of tasks, which is by the time of their last change."""

    changed_at: float
    task_id: UUID


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task in a list. `agent_type` is empty for a task cancelled before its message was read."""

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
        """At most `limit` tasks, and the position of the next page; None if there is none.

        With a `user_id`, the list has the user's tasks that entered through the store: by the gateway, with
        an idempotency key, or by a schedule. An index of all tasks would slow down each end of a task.
        Without `user_id`, it has all tasks with a row. A task that changes between two calls moves to the
        first page.
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
            # It selects the partial index of unfinished tasks, which are few.
            conditions.append(tasks.c.finished_at.is_(None))
    return conditions


def _behind(after: Position) -> ColumnElement[bool]:
    changed_at, task_id = after
    same_moment = and_(tasks.c.updated_at == changed_at, tasks.c.task_id < task_id)
    # The first half is redundant, but lets the database use its index.
    return and_(tasks.c.updated_at <= changed_at, or_(tasks.c.updated_at < changed_at, same_moment))
