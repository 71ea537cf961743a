"""Control state of a fleet: cancelled tasks and paused agent types."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from warren.store.audit import Note
from warren.store.columns import one_more
from warren.store.database import Store
from warren.store.schema import CANCELLED, FINAL, pauses, tasks


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Result of a cancellation. `before` is the task's earlier status, None if it had no row.

    `attempts`, `reply_to` and `correlation_id` come from the row, for the reply.
    """

    before: str | None
    attempts: int = 0
    reply_to: str | None = None
    correlation_id: str | None = None

    @property
    def had_ended(self) -> bool:
        """Whether the task had ended, so that the cancellation came too late."""
        return self.before in FINAL


class Board:
    """The control state of a fleet, in its store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def cancel(self, task_id: UUID, note: Note | None = None) -> Cancelled:
        """Cancel the task, unless it has ended. From now on the fence refuses every write of its runs.

        A task without a row waits in its queue, runs for the first time, or does not exist. It gets a row
        with the status cancelled, which workers find later. The audit note is written if something changes.
        """
        now = time.time()
        new = {
            "task_id": task_id, "life": "", "agent_type": "", "user_id": "", "status": CANCELLED,
            "fence": 1, "crashes": 0, "attempts": 0, "finished_at": now, "updated_at": now,
        }  # fmt: skip

        def act(connection: Connection) -> Cancelled:
            done = cancel(connection)
            if note is not None and not done.had_ended:
                note.write(connection, str(task_id))
            return done

        def cancel(connection: Connection) -> Cancelled:
            made = connection.execute(self._insert(tasks).values(new).on_conflict_do_nothing())
            if made.rowcount:
                return Cancelled(None)
            query = select(tasks).where(tasks.c.task_id == task_id).with_for_update()
            row = connection.execute(query).mappings().one()
            if row["status"] not in FINAL:
                self._overrule(connection, task_id, now)
            return Cancelled(row["status"], row["attempts"], row["reply_to"], row["correlation_id"])

        return await self._store.run(act)

    def _overrule(self, connection: Connection, task_id: UUID, now: float) -> None:
        values: dict[str, Any] = {"due_at": None, "leased_until": None, "finished_at": now, "updated_at": now}
        connection.execute(
            tasks.update()
            .where(tasks.c.task_id == task_id)
            .values(status=CANCELLED, fence=one_more(tasks.c.fence), **values)
        )

    async def cancelled_since(self, moment: float) -> list[tuple[UUID, float]]:
        """Tasks cancelled after `moment`, each with its time. Times are in seconds since the epoch."""
        query = select(tasks.c.task_id, tasks.c.finished_at).where(
            tasks.c.status == CANCELLED, tasks.c.finished_at > moment
        )

        def act(connection: Connection) -> list[tuple[UUID, float]]:
            return [(row.task_id, row.finished_at) for row in connection.execute(query)]

        return await self._store.read(act)

    async def pause(self, agent_type: str, note: Note | None = None) -> bool:
        """Pause an agent type: no worker may start its tasks. False if it was paused already."""
        new = {"agent_type": agent_type, "paused_at": time.time()}

        def act(connection: Connection) -> bool:
            made = connection.execute(self._insert(pauses).values(new).on_conflict_do_nothing())
            return _changed(connection, agent_type, made.rowcount, note)

        return await self._store.run(act)

    async def resume(self, agent_type: str, note: Note | None = None) -> bool:
        """Resume a paused agent type. False if it was not paused."""

        def act(connection: Connection) -> bool:
            gone = connection.execute(pauses.delete().where(pauses.c.agent_type == agent_type))
            return _changed(connection, agent_type, gone.rowcount, note)

        return await self._store.run(act)

    async def paused(self) -> set[str]:
        """The agent types that are paused."""

        def act(connection: Connection) -> set[str]:
            return set(connection.execute(select(pauses.c.agent_type)).scalars())

        return await self._store.read(act)


def _changed(connection: Connection, agent_type: str, rows: int, note: Note | None) -> bool:
    """Whether rows changed; then the audit note is written."""
    if rows and note is not None:
        note.write(connection, agent_type)
    return bool(rows)
