"""Writes of a settlement to the row of its task, under the fence of its run.

`commit_group` writes ends (`Entry`), hundreds at once. The other writes are rare, and are made one by one in
the same transaction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias

from sqlalchemy import Connection

from warren.errors import FenceLost
from warren.store.columns import one_more
from warren.store.commit_group import Entry, Verdict
from warren.store.fence import hold, locked
from warren.store.lives import is_foreign
from warren.store.schema import CANCELLED, RELEASED, SCHEDULED, tasks
from warren.store.stored_message import Parcel, Setback


@dataclass(frozen=True, slots=True)
class Postponed:
    """The task waits in the store until `due_at` (seconds since the epoch).

    Messages of the task that are under way become stale.
    """

    run: Entry
    due_at: float
    attempts: int
    parcel: Parcel
    after: Setback | None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The run was cancelled. The row may not say so yet: a control message can come first."""

    run: Entry


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The task was given back to its queue. The next worker must not treat it as a suspect of a crash."""

    run: Entry


Write: TypeAlias = Entry | Postponed | Cancellation | GivenBack


def run_of(write: Write) -> Entry:
    """The run that a write belongs to."""
    return write if isinstance(write, Entry) else write.run


def write_one(connection: Connection, write: Postponed | Cancellation | GivenBack) -> Verdict:
    """Make one write inside a transaction. OVERTAKEN: the run has lost the task, and nothing changed."""
    try:
        _write(write, connection)
    except FenceLost:
        return Verdict.OVERTAKEN
    return Verdict.COUNTS


@singledispatch
def _write(write: object, _connection: Connection) -> None:
    raise TypeError(f"nothing is known of a {type(write).__name__}")


@_write.register
def _(postponed: Postponed, connection: Connection) -> None:
    hold(connection, postponed.run)
    values: dict[str, Any] = {"attempts": postponed.attempts, "due_at": postponed.due_at}
    values |= postponed.parcel.columns()
    if postponed.after is not None:
        values |= {name: getattr(postponed.after, name) for name in Setback.__slots__}
    _update(
        connection,
        postponed.run,
        status=SCHEDULED,
        dispatch=one_more(tasks.c.dispatch),
        leased_until=None,
        crashes=0,
        updated_at=time.time(),
        **values,
    )


@_write.register
def _(cancellation: Cancellation, connection: Connection) -> None:
    run, now = cancellation.run, time.time()
    row = locked(connection, run.task_id)
    if row is not None and row["status"] == CANCELLED:
        if is_foreign(row["agent_type"], row["user_id"], run.agent_type, run.user_id):
            raise FenceLost(f"task {run.task_id} is another's")
        return
    hold(connection, run)
    _update(
        connection,
        run,
        status=CANCELLED,
        crashes=0,
        worker_id=run.worker_id,
        due_at=None,
        leased_until=None,
        finished_at=now,
        updated_at=now,
    )


@_write.register
def _(given_back: GivenBack, connection: Connection) -> None:
    hold(connection, given_back.run)
    _update(connection, given_back.run, status=RELEASED, crashes=0)


def _update(connection: Connection, run: Entry, **values: Any) -> None:
    connection.execute(tasks.update().where(tasks.c.task_id == run.task_id).values(**values))
