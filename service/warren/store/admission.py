"""Admission control: the gateway inserts tasks into the outbox, within the quotas of their users.

A quota counts the user's unfinished rows in the transaction that adds new ones, so every end of a task frees
its place. Quotas are exact: admissions of the same user wait for each other, on PostgreSQL by an advisory
lock, on SQLite because it has one writer. The outbox's capacity is approximate: on PostgreSQL, admissions of
different users at the same moment do not see each other.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import ARRAY, BigInteger, ColumnElement, Connection, and_, bindparam, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from warren.errors import StoreUnavailable, StoreUnusable
from warren.store.columns import one_more
from warren.store.database import Store
from warren.store.outbox import body_of, waiting_row
from warren.store.requests import FirstRequest
from warren.store.schema import SCHEDULED, fitting, tasks
from warren.store.stored_message import Parcel
from warren_schemas import AMQP_PRIORITY, Task

GROUP: Final = 1000  # tasks in one transaction at most, unless one list is longer
# The last tenth of the outbox is shared: there a user may have no more tasks waiting than there is room
# left. So users that fill the outbox leave room for others (dynamic thresholds; Choudhury and Hahne, 1998).
LAST: Final = 10


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to admit. `due_at` is in seconds since the epoch; None means now."""

    task_id: UUID
    agent_type: str
    user_id: str
    parcel: Parcel
    due_at: float | None = None
    idempotency_key: str | None = None

    @classmethod
    def of(cls, task: Task, headers: Mapping[str, str] = MappingProxyType({})) -> Self:
        """The admission of a task, due at its `not_before`. `headers` are for its message."""
        return cls(
            task_id=task.task_id,
            agent_type=task.agent_type,
            user_id=task.user_id,
            parcel=Parcel(body_of(task), to_json(dict(headers)), AMQP_PRIORITY[task.priority]),
            due_at=None if task.not_before is None else task.not_before.timestamp(),
            idempotency_key=task.idempotency_key,
        )


@dataclass(frozen=True, slots=True)
class Admitted:
    """The task is durable. `existed`: the user used this idempotency key before, for the task named here."""

    task_id: UUID
    existed: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """A task with this id exists already."""

    task_id: UUID


@dataclass(frozen=True, slots=True)
class KeyConflict:
    """The user's idempotency key belongs to this task, which has another agent type or payload."""

    task_id: UUID
    key: str


@dataclass(frozen=True, slots=True)
class QuotaExceeded:
    """The user has reached the limit of unfinished tasks."""

    limit: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class OutboxFull:
    """The outbox holds as many due tasks as it may, or nearly as many and too many of them are the user's."""

    capacity: int
    waiting: int
    own: int


Answer: TypeAlias = Admitted | Conflict | KeyConflict | QuotaExceeded | OutboxFull


@dataclass(slots=True)
class _Known:
    """The state read from the database, and the tasks admitted since then."""

    task_ids: set[UUID]
    by_key: dict[tuple[str, str], UUID]
    unfinished: Counter[str]
    due: Counter[str]
    waiting: int
    new: list[NewTask] = field(default_factory=list)

    def let_in(self, entry: NewTask, *, is_due: bool) -> None:
        """Count a task as admitted."""
        self.new.append(entry)
        self.task_ids.add(entry.task_id)
        self.unfinished[entry.user_id] += 1
        self.due[entry.user_id] += is_due
        self.waiting += is_due
        if entry.idempotency_key is not None:
            self.by_key[entry.user_id, entry.idempotency_key] = entry.task_id


class _Request:
    """Tasks to admit together, and a future with their answers."""

    def __init__(self, entries: Sequence[NewTask]) -> None:
        self.entries = entries
        self.answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()

    def succeed(self, answers: list[Answer]) -> None:
        if not self.answers.done():
            self.answers.set_result(answers)

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)


class Admission:
    """Admits tasks, with a limit of unfinished tasks for each user and of due tasks in the outbox."""

    def __init__(self, store: Store, *, max_tasks_per_user: int, outbox_capacity: int) -> None:
        self._store = store
        self._limit, self._capacity = max_tasks_per_user, outbox_capacity
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        self._waiting: deque[_Request] = deque()
        self._writing: asyncio.Task[None] | None = None

    async def admit(self, entries: Sequence[NewTask]) -> list[Answer]:
        """Admit tasks in one transaction: an answer for each, in order. Durable when it returns.

        Calls that arrive during a transaction share the next one. Raises StoreUnavailable when the database
        is away. Then no task was admitted, with one exception: if some idempotency keys were used before, the
        error may come after the other tasks were admitted.
        """
        request = _Request([_fitted(entry) for entry in entries])
        self._waiting.append(request)
        if self._writing is None or self._writing.done():
            # In a separate asyncio task: a cancelled caller does not delay the others.
            self._writing = asyncio.create_task(self._write_all())
        answers = await request.answers
        return [
            await self._compared(entry, answer)
            for entry, answer in zip(request.entries, answers, strict=True)
        ]

    async def _compared(self, entry: NewTask, answer: Answer) -> Answer:
        """The answer, or a conflict if the first task with the key asked for something else.

        Bodies are read outside the transaction, one at a time: a thousand bodies could be a gigabyte.
        """
        if not (isinstance(answer, Admitted) and answer.existed and entry.idempotency_key is not None):
            return answer
        first = await self._first(answer.task_id)
        if first is None or await first.is_the_same(entry.agent_type, entry.parcel.body):
            return answer
        return KeyConflict(answer.task_id, entry.idempotency_key)

    async def _first(self, task_id: UUID) -> FirstRequest | None:
        """The task that has the key, or None if it was just pruned."""
        query = select(tasks.c.task_id, tasks.c.agent_type, tasks.c.body).where(tasks.c.task_id == task_id)
        row = await self._store.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else FirstRequest(*row)

    async def _write_all(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft()]
            size = len(group[0].entries)
            while self._waiting and (size := size + len(self._waiting[0].entries)) <= GROUP:
                group.append(self._waiting.popleft())
            await self._answer(group)

    async def _answer(self, group: Sequence[_Request]) -> None:
        try:
            answers = iter(await self._admit([entry for request in group for entry in request.entries]))
        except (StoreUnavailable, StoreUnusable) as error:
            for request in group:
                request.fail(error)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            if len(group) == 1:
                group[0].fail(error)
                return
            for request in group:  # one of them caused the error
                await self._answer([request])
        else:
            for request in group:
                request.succeed(list(islice(answers, len(request.entries))))

    async def _admit(self, entries: Sequence[NewTask]) -> list[Answer]:
        def act(connection: Connection) -> list[Answer]:
            answers: dict[int, Answer] = {}
            self._lock(connection, {entry.user_id for entry in entries})
            while open_ones := [number for number in range(len(entries)) if number not in answers]:
                asking = [entries[number] for number in open_ones]
                now = time.time()
                known = self._known(connection, asking, now)
                decided = [self._decide(entry, known, now) for entry in asking]
                # Another producer, without our lock, may just have inserted some of these: look again.
                overtaken = self._overtaken(connection, known.new, now)
                answers |= {
                    number: answer
                    for number, answer in zip(open_ones, decided, strict=True)
                    if not (isinstance(answer, Admitted) and answer.task_id in overtaken)
                }
            return [answers[number] for number in range(len(entries))]

        return await self._store.run(act)

    def _decide(self, entry: NewTask, known: _Known, now: float) -> Answer:
        if entry.idempotency_key is not None:
            first = known.by_key.get((entry.user_id, entry.idempotency_key))
            if first is not None:
                return Admitted(first, existed=True)
        if entry.task_id in known.task_ids:
            return Conflict(entry.task_id)
        if (unfinished := known.unfinished[entry.user_id]) >= self._limit:
            return QuotaExceeded(self._limit, unfinished)
        is_due = entry.due_at is None or entry.due_at <= now
        if is_due and self._is_nearly_full(known.waiting):
            own = known.due[entry.user_id]
            if own >= self._capacity - known.waiting:
                return OutboxFull(self._capacity, known.waiting, own)
        known.let_in(entry, is_due=is_due)
        return Admitted(entry.task_id)

    def _is_nearly_full(self, waiting: int) -> bool:
        return self._capacity - waiting <= self._capacity // LAST

    def _lock(self, connection: Connection, users: Collection[str]) -> None:
        """PostgreSQL: lock the users, so that other admissions of theirs wait until the transaction ends."""
        if self._store.is_sqlite:
            return
        # Sorted, so that two admissions of the same users cannot deadlock.
        numbers = bindparam("numbers", sorted(map(_lock_number, users)), type_=ARRAY(BigInteger))
        number = func.unnest(numbers).column_valued("number")
        connection.execute(select(func.pg_advisory_xact_lock(number)))

    def _known(self, connection: Connection, entries: Sequence[NewTask], now: float) -> _Known:
        ids = select(tasks.c.task_id).where(tasks.c.task_id.in_([entry.task_id for entry in entries]))
        users = {entry.user_id for entry in entries}
        # Only due tasks count: those due later take no room in the outbox. The limit saves counting more.
        is_due = tasks.c.due_at <= now
        due = select(tasks.c.task_id).where(is_due).limit(self._capacity)
        waiting = int(connection.execute(select(func.count()).select_from(due.subquery())).scalar_one())
        may_be_nearly_full = self._is_nearly_full(waiting + len(entries))
        return _Known(
            task_ids=set(connection.execute(ids).scalars()),
            by_key=_by_key(connection, entries),
            unfinished=_counted(connection, users, tasks.c.finished_at.is_(None)),
            due=_counted(connection, users, is_due) if may_be_nearly_full else Counter(),
            waiting=waiting,
        )

    def _overtaken(self, connection: Connection, new: Sequence[NewTask], now: float) -> set[UUID]:
        """Insert the rows. Returns the tasks whose id or key another producer has inserted first."""
        if not new:
            return set()
        statement = self._insert(tasks).on_conflict_do_nothing().returning(tasks.c.task_id)
        made = connection.execute(statement, [_row(entry, now) for entry in new])
        return {entry.task_id for entry in new} - set(made.scalars())


def _counted(connection: Connection, users: Collection[str], which: ColumnElement[bool]) -> Counter[str]:
    """The number of matching tasks for each of these users."""
    query = select(tasks.c.user_id, func.count()).where(tasks.c.user_id.in_(users), which)
    rows = connection.execute(query.group_by(tasks.c.user_id))
    return Counter({user_id: count for user_id, count in rows})  # noqa: C416


def _by_key(connection: Connection, entries: Sequence[NewTask]) -> dict[tuple[str, str], UUID]:
    """The existing tasks with the idempotency keys of these entries."""
    wanted = {
        (entry.user_id, entry.idempotency_key) for entry in entries if entry.idempotency_key is not None
    }
    if not wanted:
        return {}
    key = tuple_(tasks.c.user_id, tasks.c.idempotency_key)
    query = select(
        tasks.c.user_id, tasks.c.idempotency_key, tasks.c.task_id, tasks.c.status, tasks.c.dispatch
    ).where(key.in_(list(wanted)), tasks.c.idempotency_key.is_not(None))
    rows = connection.execute(query).all()
    may_go = {row.task_id for row in rows if row.status == SCHEDULED and row.dispatch == 1}
    gone = may_go - _keep(connection, may_go)
    return {(row.user_id, row.idempotency_key): row.task_id for row in rows if row.task_id not in gone}


def _keep(connection: Connection, task_ids: Collection[UUID]) -> set[UUID]:
    """Leave these tasks to the relay, and stop their producer from deleting them. Returns those that remain.

    A producer that publishes a task itself deletes its row if the broker refuses the task
    (`Entrance.withdraw`). But the gateway is about to report the task as accepted. So its dispatch number
    goes up, and the producer's delete, which names the old number, finds no row.
    """
    if not task_ids:
        return set()
    still = and_(tasks.c.task_id.in_(task_ids), tasks.c.status == SCHEDULED, tasks.c.dispatch == 1)
    kept = tasks.update().where(still).values(dispatch=one_more(tasks.c.dispatch), leased_until=None)
    return set(connection.execute(kept.returning(tasks.c.task_id)).scalars())


def _fitted(entry: NewTask) -> NewTask:
    """The entry with its texts made to fit their columns."""
    key = entry.idempotency_key
    return NewTask(
        entry.task_id,
        entry.agent_type,
        fitting(entry.user_id, tasks.c.user_id),
        entry.parcel,
        entry.due_at,
        None if key is None else fitting(key, tasks.c.idempotency_key),
    )


def _row(entry: NewTask, now: float) -> dict[str, Any]:
    return waiting_row(
        entry.task_id,
        entry.agent_type,
        entry.user_id,
        entry.parcel,
        now,
        due_at=entry.due_at,
        key=entry.idempotency_key,
    )


def _lock_number(user_id: str) -> int:
    """The user's number among PostgreSQL's advisory locks, which other programs use too."""
    return int.from_bytes(sha256(f"warren quota {user_id}".encode()).digest()[:8], signed=True)
