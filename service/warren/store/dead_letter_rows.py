"""Intake of dead letters into the store: how a letter from the dead queue changes the row of its task.

The queue may deliver a letter twice, late, or after a newer life of its task has begun. Only a letter with
news changes a row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, Literal
from uuid import UUID, uuid5

import structlog
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from warren.store.columns import clean
from warren.store.database import Store
from warren.store.lives import is_foreign, life_of
from warren.store.schema import DEAD, FINAL, fitting, tasks
from warren.store.stored_message import Parcel

TAKEN: Final = UUID("0f6d6f3c-3f0e-5a55-9f0b-7c1f4c1b2a90")
"""The namespace (RFC 9562, version 5) for new ids of letters that reuse the id of another user's task."""

log = structlog.get_logger(__name__)

Change = Literal["new", "fill", "bury", "none"]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it is written. Times are seconds since the epoch."""

    task_id: UUID
    life: str
    dispatch: int
    agent_type: str
    user_id: str
    message_id: str
    parcel: Parcel
    reason: str
    error_type: str
    error_message: str
    traceback: str
    fingerprint: str
    attempts: int
    worker_id: str | None
    first_failed_at: float
    last_failed_at: float
    created_at: float | None = None


@dataclass(slots=True)
class _Row:
    """The columns of a task's row that decide what a letter changes."""

    life: str
    dispatch: int
    status: str
    fence: int
    has_body: bool
    agent_type: str
    user_id: str


def change_by(letter: Letter, row: _Row | None) -> Change:
    """What a letter changes: it makes a new row, fills in the missing body, or marks the task as dead."""
    if row is None:
        return "new"
    life = life_of(letter.life, row.life, row.status)
    if life != row.life:
        return "bury" if life > row.life else "none"
    if letter.dispatch < row.dispatch:
        return "none"
    if row.status == DEAD:
        return "none" if row.has_body else "fill"
    return "none" if row.status in FINAL else "bury"


class Letters:
    """Writes dead letters into one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def take_in(self, letters: Sequence[Letter]) -> None:
        """Write dead letters, all or none. They are durable when it returns."""

        def act(connection: Connection) -> None:
            self.write(connection, letters)

        await self._store.run(act)

    def write(self, connection: Connection, letters: Sequence[Letter]) -> None:
        """The same inside a transaction. Rows are locked in the order of their ids, so two never deadlock."""
        pending = sorted(letters, key=_task_id)
        while pending:
            rows = self._locked(connection, [letter.task_id for letter in pending])
            own, foreign = _apart(pending, rows)
            changes = _changes(own, rows)
            overtaken = self._make(connection, changes["new"])
            _update(connection, changes["fill"])
            _update(connection, changes["bury"])
            # Another worker has just made these rows: look again.
            pending = [letter for letter in own if letter.task_id in overtaken]
            pending = sorted((*pending, *map(_with_an_id_of_its_own, foreign)), key=_task_id)

    def _locked(self, connection: Connection, task_ids: Sequence[UUID]) -> dict[UUID, _Row]:
        found = connection.execute(
            select(
                tasks.c.task_id,
                tasks.c.life,
                tasks.c.dispatch,
                tasks.c.status,
                tasks.c.fence,
                tasks.c.body.is_not(None),
                tasks.c.agent_type,
                tasks.c.user_id,
            )
            .where(tasks.c.task_id.in_(task_ids))
            .order_by(tasks.c.task_id)
            .with_for_update()
        )
        return {task_id: _Row(*rest) for task_id, *rest in found}

    def _make(self, connection: Connection, new: Mapping[UUID, dict[str, Any]]) -> set[UUID]:
        """Insert rows. Returns the tasks whose rows another worker has inserted first."""
        if not new:
            return set()
        statement = self._insert(tasks).on_conflict_do_nothing().returning(tasks.c.task_id)
        made = connection.execute(statement, list(new.values()))
        return set(new) - set(made.scalars())


def _apart(letters: Sequence[Letter], rows: Mapping[UUID, _Row]) -> tuple[list[Letter], list[Letter]]:
    """Split letters: those of the task with their id, and those that reuse the id of another user's task."""
    own, foreign = list[Letter](), list[Letter]()
    owners = {task_id: (row.agent_type, row.user_id) for task_id, row in rows.items()}
    for letter in letters:
        its = fitting(letter.agent_type, tasks.c.agent_type), fitting(letter.user_id, tasks.c.user_id)
        (foreign if is_foreign(*owners.setdefault(letter.task_id, its), *its) else own).append(letter)
    return own, foreign


def _with_an_id_of_its_own(letter: Letter) -> Letter:
    """The letter with a new id, derived from its content: every copy of it gets the same id."""
    log.warning("dead_letter.foreign", task_id=str(letter.task_id), user_id=letter.user_id)
    body = sha256(letter.parcel.body).hexdigest()
    name = clean(f"{letter.task_id} {letter.agent_type} {letter.user_id} {body}")
    return replace(letter, task_id=uuid5(TAKEN, name))


def _task_id(letter: Letter) -> UUID:
    return letter.task_id


def _update(connection: Connection, changes: Mapping[UUID, dict[str, Any]]) -> None:
    if changes:
        rows = [{"id": task_id, **values} for task_id, values in changes.items()]
        connection.execute(tasks.update().where(tasks.c.task_id == bindparam("id")), rows)


def _changes(letters: Sequence[Letter], rows: dict[UUID, _Row]) -> dict[Change, dict[UUID, dict[str, Any]]]:
    """The values to write, by kind of change. With several letters of a task, each sees the one before it."""
    changes: dict[Change, dict[UUID, dict[str, Any]]] = {"new": {}, "fill": {}, "bury": {}}
    now = time.time()
    for letter in letters:
        row = rows.get(letter.task_id)
        change = change_by(letter, row)
        if change == "none":
            log.info("dead_letter.known", task_id=str(letter.task_id), status=row and row.status)
            continue
        if letter.task_id in changes["new"]:
            change = "new"  # its row is not in the database yet, so this letter must write all columns
        changes["fill"].pop(letter.task_id, None)
        values = _columns(letter.parcel) if change == "fill" else _buried(letter, now)
        if change == "new":
            values |= {"task_id": letter.task_id, "fence": 0}
        elif change == "bury":
            assert row is not None
            values |= {"fence": row.fence + 1, "dispatch": max(row.dispatch, letter.dispatch)}
            values["life"] = life_of(letter.life, row.life, row.status)
        changes[change][letter.task_id] = values
        fence = row.fence if row else 0
        dispatch = values.get("dispatch", letter.dispatch)
        rows[letter.task_id] = _Row(
            values.get("life", letter.life),
            dispatch,
            DEAD,
            fence,
            has_body=True,
            agent_type=letter.agent_type,
            user_id=letter.user_id,
        )
    return changes


def _buried(letter: Letter, now: float) -> dict[str, Any]:
    """A row with all columns of the letter."""
    record = {
        name: getattr(letter, name)
        for name in (
            "life", "dispatch", "agent_type", "user_id", "reason", "error_type", "error_message",
            "traceback", "fingerprint", "worker_id", "first_failed_at", "last_failed_at", "created_at",
        )
    }  # fmt: skip
    return record | _columns(letter.parcel) | {
        "status": DEAD,
        "attempts": letter.attempts,
        "crashes": 0,
        "result": None,
        "finished_at": min(letter.last_failed_at, now),
        "due_at": None,
        "leased_until": None,
        "updated_at": now,
    }  # fmt: skip


def _columns(parcel: Parcel) -> dict[str, Any]:
    return {name: getattr(parcel, name) for name in Parcel.__slots__}
