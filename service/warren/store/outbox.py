"""The outbox: tasks that wait in the store, each published when it is due.

A row is the task as long as it is `scheduled`. Whoever publishes it takes a lease first, so that no other
relay does the same, and counts its `dispatch` up: should a lease run out with the message already under way,
the next message has a higher number, and the smaller one is dropped by whoever receives it.
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

LEASE: Final = 60.0  # seconds that one publication may take before somebody else tries
# Tasks that are put in order at once: as many as the front door lets wait by default. It bounds what that
# costs, however many are due.
STANDING: Final = 10_000
FIRST_PAUSE: Final = 1.0  # seconds that a row is left alone which the store refuses; doubles up to
LONGEST_PAUSE: Final = 3600.0
LOADS: Final = 5  # claims that one order is good for
UNSAID_PRIORITY: Final = AMQP_PRIORITY["medium"]  # as quorum queues read it


@dataclass(frozen=True, slots=True)
class Due:
    """A task that is to be published now; `dispatch` numbers this publication."""

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
    """A row of `tasks` for a new task that the relay publishes at `due_at`, or at once."""
    return {
        "task_id": task_id, "life": "", "agent_type": agent_type, "user_id": user_id,
        "status": SCHEDULED, "fence": 0, "crashes": 0, "attempts": 0, "dispatch": 0,
        "idempotency_key": key, "due_at": now if due_at is None else due_at,
        "created_at": now, "updated_at": now, **parcel.columns(),
    }  # fmt: skip


class Outbox:
    """The outbox as a worker uses it. Whatever it is asked waits while the store is away."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._line = deque[UUID]()
        # What the store refused to hand out: until when it is left alone, and the pause that was.
        self._refused: dict[UUID, tuple[float, float]] = {}

    async def claim_due(self, limit: int, *, but_not: Collection[str] = ()) -> list[Due]:
        """Take a lease on tasks that are due, but for some agent types; fewer than `limit` are all there are.

        Higher priorities come first; within one, users take turns: first the task of each that has been due
        longest, then the second of each, and so on. They are lined up for a few calls at once.
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
        """Claim those that stand first in line, but for those that another relay has claimed meanwhile."""
        claimed = list[Due]()
        while self._line and len(claimed) < limit:
            count = min(limit - len(claimed), len(self._line))
            claimed += await self._claim([self._line.popleft() for _ in range(count)], but_not)
        return claimed

    async def _claim(self, task_ids: Sequence[UUID], but_not: Collection[str]) -> list[Due]:
        """Claim these, in their order. One that the store refuses is left alone, longer each time."""

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
        """The broker has confirmed these. Those that somebody runs already are left alone."""

        await self._each(sent, _mark_published)

    async def set_aside(self, due: Due, reason: Reason, failure: Failure) -> None:
        """End a task that can never be published: dead, with its body, to be edited and replayed."""
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
        """These could not be published: nobody tries again for so many seconds."""
        statement = tasks.update().where(*_is_named()).values(leased_until=time.time() + seconds)

        def write(connection: Connection, some: Sequence[Due]) -> None:
            connection.execute(statement, [_named(due) for due in some])

        await self._each(refused, write)

    async def _each(self, rows: Sequence[Due], write: Callable[[Connection, Sequence[Due]], None]) -> None:
        """Write the rows in one transaction; one that the store refuses changes nothing for the others."""

        async def together(some: Sequence[Due]) -> Sequence[None]:
            await self._ledger.surely(lambda connection: write(connection, some))
            return [None] * len(some)

        await apart(rows, together, lambda due, error: self._refuse(due.task_id, error))


class Entrance:
    """The outbox as a producer uses it: tasks with an idempotency key enter once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert

    async def enter(
        self, task_id: UUID, agent_type: str, user_id: str, key: str, parcel: Parcel
    ) -> Due | FirstRequest | None:
        """Write a task down, once for its user and key.

        Gives what its producer is to publish right now; or the task that had the key before;
        or None while the producer of that one is publishing it and may yet be refused: ask again.
        Should a producer vanish, a relay publishes its task when the lease is over.
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
                # None: the other one was refused just now.
                return FirstRequest(task_id, agent_type, parcel.body) if is_here else None
            if row.status == SCHEDULED and (row.leased_until or 0) > now:
                return None
            return FirstRequest(row.task_id, row.agent_type, row.body)

        return await self._store.run(act)

    async def published(self, due: Due) -> None:
        """The broker has confirmed it."""

        def act(connection: Connection) -> None:
            _mark_published(connection, [due])

        await self._store.run(act)

    async def hand_over(self, due: Due) -> None:
        """Nobody knows whether the broker has it: from now on a relay may publish it."""

        def act(connection: Connection) -> None:
            statement = tasks.update().where(*_is_named(), tasks.c.status == SCHEDULED)
            connection.execute(statement.values(leased_until=None), [_named(due)])

        await self._store.run(act)

    async def withdraw(self, due: Due) -> None:
        """The broker has refused it: its producer is told so, and nobody else is to try."""
        ours = (tasks.c.task_id == due.task_id) & (tasks.c.dispatch == due.dispatch)

        def act(connection: Connection) -> None:
            connection.execute(tasks.delete().where(ours, tasks.c.status == SCHEDULED))

        await self._store.run(act)


def _is_free(now: float, but_not: Collection[str]) -> ColumnElement[bool]:
    """Whether a row is due, of none of these agent types, and nobody publishes it right now."""
    return and_(
        tasks.c.due_at <= now,
        or_(tasks.c.leased_until.is_(None), tasks.c.leased_until < now),
        tasks.c.agent_type.not_in(list(but_not)),
    )


def _line(now: float, but_not: Collection[str]) -> Select[Any]:
    """The ids of the tasks to publish, in order; of very many, of those that have been due longest."""
    columns = (tasks.c.task_id, tasks.c.user_id, tasks.c.priority, tasks.c.due_at)
    due = select(*columns).where(_is_free(now, but_not)).order_by(tasks.c.due_at).limit(STANDING).subquery()
    priority = func.coalesce(due.c.priority, UNSAID_PRIORITY)
    turn = func.row_number().over(partition_by=(priority, due.c.user_id), order_by=due.c.due_at)
    return select(due.c.task_id).order_by(priority.desc(), turn, due.c.due_at)


def body_of(task: Task) -> bytes:
    """The body of its message."""
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
    """Whether a row still stands for this publication: another life may have got to the same number."""
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
