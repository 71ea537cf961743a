"""Fencing of task rows: only the newest run may change the row.

A run that takes a task over gets a higher fence, and every later write carries the fence of its run. Writes
with an older fence change nothing (Kleppmann, *Designing Data-Intensive Applications*, chapter 8: fencing
tokens).
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from warren.errors import FenceLost
from warren.store.commit_group import Entry
from warren.store.lives import is_foreign
from warren.store.schema import FINAL, RUNNING, tasks
from warren.store.upsert import insert_into


def locked(connection: Connection, task_id: UUID) -> dict[str, Any] | None:
    """The row of a task, locked until the transaction ends, or None."""
    query = select(tasks).where(tasks.c.task_id == task_id).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def first(connection: Connection, task_id: UUID, values: dict[str, Any]) -> dict[str, Any]:
    """Insert the first row of a task and lock it. Another worker may do the same at this moment."""
    new = {
        "task_id": task_id,
        "life": "",
        "attempts": 0,
        "status": RUNNING,
        "fence": 0,
        "crashes": 0,
        "updated_at": time.time(),
        **values,
    }
    connection.execute(insert_into(connection, tasks).values(new).on_conflict_do_nothing())
    row = locked(connection, task_id)
    assert row is not None
    return row


def hold(connection: Connection, run: Entry) -> None:
    """Lock the run's row, or make it. Raises FenceLost unless the fence is still this run's."""
    row = locked(connection, run.task_id) or first(connection, run.task_id, owner(run))
    if row["fence"] != run.fence or not is_of_its_task(row, run):
        raise lost(row, run)


def owner(run: Entry) -> dict[str, Any]:
    """The columns of a first row that come from the run that makes it."""
    return {name: getattr(run, name) for name in ("life", "agent_type", "user_id", "worker_id")}


def is_of_its_task(row: dict[str, Any], run: Entry) -> bool:
    """Whether the row belongs to the run's task and life, and has not ended."""
    return (
        row["life"] == run.life
        and row["status"] not in FINAL
        and not is_foreign(row["agent_type"], row["user_id"], run.agent_type, run.user_id)
    )


def is_free(row: dict[str, Any], run: Entry) -> bool:
    """Whether a first run may take the row: no other run has it, and no later message is under way."""
    is_its_own = row["worker_id"] == run.worker_id and row["fence"] == run.fence
    return is_of_its_task(row, run) and row["dispatch"] == 0 and (row["status"] != RUNNING or is_its_own)


def lost(row: dict[str, Any], run: Entry) -> FenceLost:
    """The error for a run that has lost its fence."""
    return FenceLost(
        f"task {run.task_id} was taken over or has ended (status {row['status']}, fence {row['fence']}; "
        f"ours is {run.fence}): this run must stop"
    )
