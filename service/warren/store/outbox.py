"""The outbox: tasks that wait in the store until they are due, and are then published.

While a row is `scheduled`, it is the task. A relay takes a lease on it before it publishes, so that no other
relay does the same, and increments its `dispatch`. If a lease expires with the message already under way, the
next message has a higher number, and the worker that receives the older one drops it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, bindparam, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from warren.store.columns import one_more
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.patience import apart
from warren.store.requests import FirstRequest
from warren.store.schema import DEAD, PUBLISHED, SCHEDULED, fitting, tasks
from warren.store.stored_message import Parcel
from warren.support.failure import Failure
from warren_schemas import AMQP_PRIORITY, Reason, Task

log = structlog.get_logger(__name__)

LEASE: Final = 60.0  # seconds that one publication may take before another relay tries
# Tasks that are sorted at once: the default capacity of the outbox. It limits the cost of sorting, however
# many tasks are due.
STANDING: Final = 10_000
FIRST_PAUSE: Final = 1.0  # seconds before a row that the store refused is tried again; doubles each time
LONGEST_PAUSE: Final = 3600.0
LOADS: Final = 5  # claims for which one sorted list is used
UNSAID_PRIORITY: Final = AMQP_PRIORITY["medium"]  # for a row without a priority, as in quorum queues


@dataclass(frozen=True, slots=True)
class Due:
    """A task to publish now. `dispatch` is the number of this publication."""

    task_id: UUID
    life: str
    agent_type: str
    attempts: int
    dispatch: int
    parcel: Parcel


def waiting_row(
    task_id: UUID,
    agent_type: str,
    user_id: str,
    parcel: Parcel,
    now: float,
    *,
    due_at: float | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """A row of `tasks` for a new task, which the relay publishes at `due_at`; None means at once."""
    return {
        "task_id": task_id, "life": "", "agent_type": agent_type, "user_id": user_id,
        "status": SCHEDULED, "fence": 0, "crashes": 0, "attempts": 0, "dispatch": 0,
        "idempotency_key": key, "due_at": now if due_at is None else due_at,
        "created_at": now, "updated_at": now, **parcel.columns(),
    }  # fmt: skip


class Outbox:
    """The outbox for a relay. Every operation waits while the store is away."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._line = deque[UUID]()
        # Rows that the store refused: the time of the next try, and the length of the last pause.
        self._refused: dict[UUID, tuple[float, float]] = {}

    async def claim_due(self, limit: int, *, but_not: Collection[str] = ()) -> list[Due]:
        """Take a lease on due tasks, at most `limit`, except those of the agent types `but_not`.

        Higher priorities come first. Within a priority users take turns: first the longest due task of each
        user, then the second of each, and so on. Tasks are sorted for a few calls at once. Fewer than `limit`
        tasks means that there are no more.
        """
        claimed = await self._claim_next(limit, but_not)
        if len(claimed) < limit:
            self._line.extend(await self._lined_up(LOADS * limit, but_not))
            claimed += await self._claim_next(limit - len(claimed), but_not)
        return claimed

    async def _lined_up(self, count: int, but_not: Collection[str]) -> Sequence[UUID]:
        now = time.time()
        query = _line(now, but_not).limit(count)

        def act(connection: Connection) -> Sequence[UUID]:
            return list(connection.execute(query).scalars())

        line = await self._ledger.surely(act)
        return [task_id for task_id in line if self._refused.get(task_id, (0.0, 0.0))[0] <= now]

    async def _claim_next(self, limit: int, but_not: Collection[str]) -> list[Due]:
        """Claim the first tasks of the sorted list, except those that another relay has claimed since."""
        claimed = list[Due]()
        while self._line and len(claimed) < limit:
            count = min(limit - len(claimed), len(self._line))
            claimed += await self._claim([self._line.popleft() for _ in range(count)], but_not)
        return claimed

    async def _claim(self, task_ids: Sequence[UUID], but_not: Collection[str]) -> list[Due]:
        """Claim these tasks, in their order. A task that the store refuses pauses, longer each time."""

        async def claim(some: Sequence[UUID]) -> list[Due | None]:
            found = {due.task_id: due for due in await self._claim_together(some, but_not)}
            return [found.get(task_id) for task_id in some]

        return [due for due in await apart(task_ids, claim, self._refuse) if due is not None]

    def _refuse(self, task_id: UUID, error: Exception) -> None:
        pause = min(2 * self._refused.get(task_id, (0.0, FIRST_PAUSE / 2))[1], LONGEST_PAUSE)
        self._refused[task_id] = time.time() + pause, pause
        self._ledger.refused += 1
        log.error("outbox.refused", task_id=str(task_id), again_in_s=pause, error=str(error))

    async def _claim_together(self, task_ids: Sequence[UUID], but_not: Collection[str]) -> list[Due]:
        now = time.time()
        free = (
            select(tasks.c.task_id)
            .where(tasks.c.task_id.in_(task_ids), _is_free(now, but_not))
            .with_for_update(skip_locked=True)
        )
        claimed = (
            tasks.update()
            .where(tasks.c.task_id.in_(free))
            .values(leased_until=now + LEASE, dispatch=one_more(tasks.c.dispatch))
            .returning(tasks)
        )

        def act(connection: Connection) -> list[Due]:
            return [_due(row) for row in connection.execute(claimed).mappings()]

        return await self._ledger.surely(act)

    async def published(self, sent: Sequence[Due]) -> None:
        """Mark tasks as published: the broker has confirmed them. Tasks that run already are not changed."""

        await self._each(sent, _mark_published)

    async def set_aside(self, due: Due, reason: Reason, failure: Failure) -> None:
        """End a task that can never be published: it is dead, and keeps its body for an edited replay."""
        self._ledger.refused += 1
        now = time.time()
        dead = {
            "status": DEAD,
            "reason": reason,
            "error_type": fitting(failure.error_type, tasks.c.error_type),
            "error_message": fitting(failure.message, tasks.c.error_message),
            "fingerprint": failure.fingerprint,
            "first_failed_at": now,
            "last_failed_at": now,
            "finished_at": now,
            "updated_at": now,
            "due_at": None,
            "leased_until": None,
        }
        statement = tasks.update().where(*_is_named(), tasks.c.status == SCHEDULED).values(dead)

        def act(connection: Connection) -> None:
            connection.execute(statement, [_named(due)])

        await self._ledger.surely(act)

    async def put_back(self, refused: Sequence[Due], seconds: float) -> None:
        """Put back tasks that could not be published. No relay tries them for so many `seconds`."""
        statement = tasks.update().where(*_is_named()).values(leased_until=time.time() + seconds)

        def write(connection: Connection, some: Sequence[Due]) -> None:
            connection.execute(statement, [_named(due) for due in some])

        await self._each(refused, write)

    async def _each(self, rows: Sequence[Due], write: Callable[[Connection, Sequence[Due]], None]) -> None:
        """Write the rows in one transaction. A row that the store refuses does not affect the others."""

        async def together(some: Sequence[Due]) -> Sequence[None]:
            await self._ledger.surely(lambda connection: write(connection, some))
            return [None] * len(some)

        await apart(rows, together, lambda due, error: self._refuse(due.task_id, error))


class Entrance:
    """The outbox for a producer. A task with an idempotency key enters once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def enter(
        self, task_id: UUID, agent_type: str, user_id: str, key: str, parcel: Parcel
    ) -> Due | FirstRequest | None:
        """Insert a task, once for its user and key.

        Returns the publication that its producer must make now, or the earlier task with this key. Returns
        None if another producer is publishing that task and may still be refused: ask again. If a producer
        vanishes, a relay publishes its task after the lease.
        """
        now = time.time()
        new = waiting_row(task_id, agent_type, user_id, parcel, now, key=key)
        new |= {"dispatch": 1, "leased_until": now + LEASE}

        def act(connection: Connection) -> Due | FirstRequest | None:
            written = connection.execute(self._insert(tasks).values(new).on_conflict_do_nothing())
            if written.rowcount:
                return Due(task_id, "", agent_type, 0, 1, parcel)
            by_key = (tasks.c.user_id == user_id) & (tasks.c.idempotency_key == key)
            first = select(tasks.c.task_id, tasks.c.agent_type, tasks.c.body)
            known = first.add_columns(tasks.c.status, tasks.c.leased_until).where(by_key)
            row = connection.execute(known).one_or_none()
            if row is None:
                itself = select(tasks.c.task_id).where(tasks.c.task_id == task_id)
                is_here = connection.execute(itself).first() is not None
                # None: the broker has just refused the other producer's task.
                return FirstRequest(task_id, agent_type, parcel.body) if is_here else None
            if row.status == SCHEDULED and (row.leased_until or 0) > now:
                return None
            return FirstRequest(row.task_id, row.agent_type, row.body)

        return await self._store.run(act)

    async def published(self, due: Due) -> None:
        """Mark the task as published: the broker has confirmed it."""

        def act(connection: Connection) -> None:
            _mark_published(connection, [due])

        await self._store.run(act)

    async def hand_over(self, due: Due) -> None:
        """Leave the task to the relay: it is unknown whether the broker has the message."""

        def act(connection: Connection) -> None:
            statement = tasks.update().where(*_is_named(), tasks.c.status == SCHEDULED)
            connection.execute(statement.values(leased_until=None), [_named(due)])

        await self._store.run(act)

    async def withdraw(self, due: Due) -> None:
        """Delete the task, which the broker refused. Its producer gets the error, and no relay tries it."""
        ours = (tasks.c.task_id == due.task_id) & (tasks.c.dispatch == due.dispatch)

        def act(connection: Connection) -> None:
            connection.execute(tasks.delete().where(ours, tasks.c.status == SCHEDULED))

        await self._store.run(act)


def _is_free(now: float, but_not: Collection[str]) -> ColumnElement[bool]:
    """Whether a row is due, has no lease, and has none of these agent types."""
    return and_(
        tasks.c.due_at <= now,
        or_(tasks.c.leased_until.is_(None), tasks.c.leased_until < now),
        tasks.c.agent_type.not_in(list(but_not)),
    )


def _line(now: float, but_not: Collection[str]) -> Select[Any]:
    """The ids of the tasks to publish, in order: the STANDING tasks that have been due longest."""
    columns = (tasks.c.task_id, tasks.c.user_id, tasks.c.priority, tasks.c.due_at)
    due = select(*columns).where(_is_free(now, but_not)).order_by(tasks.c.due_at).limit(STANDING).subquery()
    priority = func.coalesce(due.c.priority, UNSAID_PRIORITY)
    turn = func.row_number().over(partition_by=(priority, due.c.user_id), order_by=due.c.due_at)
    return select(due.c.task_id).order_by(priority.desc(), turn, due.c.due_at)


def body_of(task: Task) -> bytes:
    """The body of a task's message."""
    return task.model_dump_json(exclude_defaults=True).encode()


def _mark_published(connection: Connection, sent: Sequence[Due]) -> None:
    statement = (
        tasks.update()
        .where(
            *_is_named(),
            tasks.c.status == SCHEDULED,
        )
        .values(status=PUBLISHED, due_at=None, leased_until=None, updated_at=time.time())
    )
    connection.execute(statement, [_named(due) for due in sent])


def _is_named() -> tuple[ColumnElement[bool], ...]:
    """Whether a row still belongs to this publication: another life may have reached the same number."""
    return (
        tasks.c.task_id == bindparam("id"),
        tasks.c.life == bindparam("its_life"),
        tasks.c.dispatch == bindparam("number"),
    )


def _named(due: Due) -> dict[str, Any]:
    return {"id": due.task_id, "its_life": due.life, "number": due.dispatch}


def _due(row: RowMapping) -> Due:
    parcel = Parcel(**{name: row[name] for name in Parcel.__slots__})
    return Due(row["task_id"], row["life"], row["agent_type"], row["attempts"], row["dispatch"], parcel)
