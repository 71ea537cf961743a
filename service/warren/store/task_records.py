"""Archive of tasks: reads everything that the store knows of a task, and deletes old tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Connection, RowMapping, and_, delete, func, select

from warren.store.database import Store
from warren.store.schema import CANCELLED, DEAD, SUCCEEDED, attempts, readable, steps, tasks
from warren.support.times import moment, moment_or_none
from warren_schemas import Reason, Result


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that failed."""

    number: int
    failed_at: datetime
    error_type: str
    error_message: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step that is remembered."""

    name: str
    value: JsonValue
    worker_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What the store knows of a task.

    `status` is scheduled (it waits here until `due_at`), published, running, released, succeeded, dead,
    cancelled or discarded.
    """

    task_id: UUID
    agent_type: str
    user_id: str
    status: str
    attempts: int
    worker_id: str | None
    result: JsonValue
    reason: str | None
    error_type: str | None
    error_message: str | None
    traceback: str | None
    checkpoint: JsonValue
    updated_at: datetime
    finished_at: datetime | None
    due_at: datetime | None = None
    failed_attempts: list[Attempt] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def as_result(self) -> Result:
        """The `Result` of an ended task, for the client that asked for it."""
        error = None
        if self.error_type is not None or self.reason is not None:
            error = {
                "type": self.error_type or "",
                "message": self.error_message or "",
                "reason": self.reason if self.reason in get_args(Reason) else None,
            }
        fields = {"version": 1, "task_id": self.task_id, "attempts": max(self.attempts, 0)}
        if self.status == SUCCEEDED:
            return Result.model_validate(fields | {"status": self.status, "result": self.result})
        status = CANCELLED if self.status == CANCELLED else DEAD
        return Result.model_validate(fields | {"status": status, "error": error})


class Archive:
    """The archive of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def task(self, task_id: UUID) -> TaskRecord | None:
        """Everything about one task. None if it waits in its queue, runs for the first time, or never was."""

        def act(connection: Connection) -> TaskRecord | None:
            row = connection.execute(select(tasks).where(tasks.c.task_id == task_id)).mappings().first()
            if row is None:
                return None
            failed = select(attempts).where(attempts.c.task_id == task_id).order_by(attempts.c.failed_at)
            remembered = select(steps).where(steps.c.task_id == task_id).order_by(steps.c.at)
            return _record(
                row,
                connection.execute(failed).mappings().all(),
                connection.execute(remembered).mappings().all(),
            )

        return await self._store.read(act)

    async def status(self, task_id: UUID) -> str | None:
        """The status of a task; None as for `task`."""
        query = select(tasks.c.status).where(tasks.c.task_id == task_id)
        return await self._store.read(lambda connection: connection.execute(query).scalar_one_or_none())

    async def ended(self, task_ids: Sequence[UUID]) -> list[UUID]:
        """Which of these tasks have ended."""
        query = select(tasks.c.task_id).where(tasks.c.task_id.in_(task_ids), tasks.c.finished_at.is_not(None))
        return await self._store.read(lambda connection: list(connection.execute(query).scalars()))

    async def ended_by(self, worker_id: str) -> dict[tuple[str, str], int]:
        """Count the tasks that a worker has ended, by agent type and outcome. It scans all: use it rarely."""
        query = (
            select(tasks.c.agent_type, tasks.c.status, func.count())
            .where(tasks.c.worker_id == worker_id, tasks.c.status.in_((SUCCEEDED, DEAD)))
            .group_by(tasks.c.agent_type, tasks.c.status)
        )

        def act(connection: Connection) -> dict[tuple[str, str], int]:
            return {(name, outcome): count for name, outcome, count in connection.execute(query)}

        return await self._store.read(act)

    async def prune(self, older_than: float) -> int:
        """Delete tasks that ended more than `older_than` seconds ago, with their steps. Returns their number.

        For a discarded task, the time of discarding counts.
        """
        has_ended = and_(tasks.c.updated_at < time.time() - older_than, tasks.c.finished_at.is_not(None))
        ended = select(tasks.c.task_id).where(has_ended)

        def act(connection: Connection) -> int:
            for table in (steps, attempts):
                connection.execute(delete(table).where(table.c.task_id.in_(ended)))
            return connection.execute(delete(tasks).where(has_ended)).rowcount

        return await self._store.run(act)


def _record(row: RowMapping, failed: Sequence[RowMapping], remembered: Sequence[RowMapping]) -> TaskRecord:
    return TaskRecord(
        task_id=row["task_id"],
        agent_type=row["agent_type"],
        user_id=row["user_id"],
        status=row["status"],
        attempts=row["attempts"],
        worker_id=row["worker_id"],
        result=readable(row["result"]),
        reason=row["reason"],
        error_type=row["error_type"],
        error_message=row["error_message"],
        traceback=row["traceback"],
        checkpoint=readable(row["checkpoint"]),
        updated_at=moment(row["updated_at"]),
        finished_at=moment_or_none(row["finished_at"]),
        due_at=moment_or_none(row["due_at"]),
        failed_attempts=[
            Attempt(
                one["number"],
                moment(one["failed_at"]),
                one["error_type"],
                one["error_message"],
                one["worker_id"],
            )
            for one in failed
        ],
        steps=[
            Step(one["name"], readable(one["value"]), one["worker_id"], moment(one["at"]))
            for one in remembered
        ],
    )
