"""Lists of tasks, page by page: whatever has a row, what changed last first.

Times are seconds since the epoch.
"""

from __future__ import annotations

import struct
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select

from warren.store import Store
from warren.store_schema import FINAL, fitting, tasks

CURSOR: Final = struct.Struct(">d16s")  # when the last task of a page changed, and its id


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
        before: str | None = None,
        limit: int,
    ) -> tuple[list[TaskLine], str | None]:
        """At most so many tasks, and the cursor that gives those behind them; None where there are none.

        With a `user_id` these are the tasks that came in through the store (by the front door, with an
        idempotency key, by a schedule): an index of all would cost each end of a task. Without, all that
        have a row. A task that changes while somebody turns pages moves to the first one.

        Raises ValueError for a cursor that no page gave.
        """
        query = select(*(tasks.c[name] for name in TaskLine.__slots__)).where(
            *_wanted(user_id, agent_type, status), *([] if before is None else [_behind(before)])
        )
        query = query.order_by(tasks.c.updated_at.desc(), tasks.c.task_id.desc()).limit(limit + 1)
        async with self._store.reading() as connection:
            lines = [TaskLine(*row) for row in await connection.execute(query)]
        has_more = len(lines) > limit
        return lines[:limit], _cursor(lines[limit - 1]) if has_more else None


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


def _behind(cursor: str) -> ColumnElement[bool]:
    try:
        changed_at, raw = CURSOR.unpack(b64decode(cursor, altchars=b"-_", validate=True))
    except (ValueError, struct.error) as error:
        raise ValueError(f"{cursor!r} is no cursor: take the one that came with the page before") from error
    same_moment = and_(tasks.c.updated_at == changed_at, tasks.c.task_id < UUID(bytes=raw))
    # The first half is what the index is good for.
    return and_(tasks.c.updated_at <= changed_at, or_(tasks.c.updated_at < changed_at, same_moment))


def _cursor(line: TaskLine) -> str:
    return urlsafe_b64encode(CURSOR.pack(line.updated_at, line.task_id.bytes)).decode()
