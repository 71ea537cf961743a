"""Replays in the store: their plans, the rows that they turn from dead to scheduled, and the outcomes.

A replay only writes rows; the relay of any worker publishes them. Every replayed row gets the replay's id as
its life. So the rows themselves show which tasks belong to a replay, and how they ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
)

from warren.errors import InvalidTask
from warren.store.audit import Note
from warren.store.columns import one_more
from warren.store.database import Store
from warren.store.dead_letters import IS_DEAD, NOT_READ_YET, Position, page_of
from warren.store.replay_plan import Plan, read_plan
from warren.store.schema import (
    CANCELLED,
    DEAD,
    DISCARDED,
    SCHEDULED,
    SUCCEEDED,
    one_of,
    replays,
    steps,
    tasks,
)

Status = Literal["running", "paused", "stopped", "done"]
"""In this order: being carried out; interrupted; ended early by itself; all replayed."""

_ENDED_OTHERWISE: Final = (DEAD, CANCELLED, DISCARDED)


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay and its plan. Only tasks that died before `created_at` belong to it.

    `plan` is None if it cannot be read. Then `reason` says why, and no task belongs to the replay. Times are
    seconds since the epoch.
    """

    replay_id: str
    plan: Plan | None
    selected: int
    status: Status
    reason: str
    created_at: float
    updated_at: float

    def condition(self) -> ColumnElement[bool]:
        """The dead letters still to replay. A row of this or a later replay is never taken again."""
        if self.plan is None:
            return tasks.c.life < ""  # matches no row; `false()` would remove the table from the query
        return and_(
            self.plan.wanted.condition(),
            tasks.c.finished_at <= self.created_at,
            tasks.c.life < self.replay_id,
        )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcome counts of a replay's tasks. `same_way` counts tasks that died with their former fingerprint."""

    succeeded: int = 0
    same_way: int = 0
    otherwise: int = 0
    open: int = 0

    @property
    def total(self) -> int:
        """The number of replayed tasks."""
        return self.succeeded + self.same_way + self.otherwise + self.open


class Fresh(NamedTuple):
    """A body to publish, with its AMQP priority, and a new task id if the payload was edited."""

    body: bytes
    priority: int
    new_id: UUID | None = None


class Problem(NamedTuple):
    """A dead letter that cannot be replayed, and the reason."""

    task_id: UUID
    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of one transaction of a replay. `position` is None if no dead letters are left."""

    replayed: int
    problems: Sequence[Problem]
    position: Position | None


class Replays:
    """The replays of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, plan: Plan, replay_id: UUID, note: Note | None = None) -> Replay:
        """Store a plan. From now on the replay can be resumed."""
        now = time.time()
        replay = Replay(str(replay_id), plan, 0, "paused", "", now, now)

        def act(connection: Connection) -> None:
            found = connection.execute(select(func.count()).select_from(tasks).where(replay.condition()))
            count = int(found.scalar_one())
            selected = count if plan.limit is None else min(count, plan.limit)
            new = {"replay_id": replay.replay_id, "plan": plan.written(selected), "status": replay.status}
            connection.execute(replays.insert().values(created_at=now, updated_at=now, **new))
            if note is not None:
                note.write(connection, replay.replay_id)

        await self._store.run(act)
        return await self.get(replay.replay_id)

    async def get(self, replay_id: str) -> Replay:
        """An existing replay."""

        def act(connection: Connection) -> Replay:
            query = select(replays).where(replays.c.replay_id == replay_id)
            return _replay(connection.execute(query).mappings().one())

        return await self._store.read(act)

    async def find(self, prefix: str) -> list[Replay]:
        """Replays whose id begins with `prefix`, the newest first, at most 10."""
        query = select(replays).where(replays.c.replay_id.startswith(prefix, autoescape=True))

        def act(connection: Connection) -> list[Replay]:
            found = connection.execute(query.order_by(replays.c.created_at.desc()).limit(10))
            return [_replay(row) for row in found.mappings()]

        return await self._store.read(act)

    async def mark(self, replay_id: str, status: Status, reason: str = "") -> None:
        """Store the status of a replay. A running replay calls this regularly as a sign of life."""

        def act(connection: Connection) -> None:
            connection.execute(
                replays.update()
                .where(replays.c.replay_id == replay_id)
                .values(status=status, reason=reason, updated_at=time.time())
            )

        await self._store.run(act)

    async def claim(self, replay_id: str, alive_for: float, note: Note | None = None) -> bool:
        """Mark a replay as running, for one process that carries it out alone.

        False if another process runs it and has given a sign of life within `alive_for` seconds.
        """
        now = time.time()
        is_free = or_(replays.c.status != "running", replays.c.updated_at <= now - alive_for)
        statement = (
            replays.update()
            .where(replays.c.replay_id == replay_id, is_free)
            .values(status="running", reason="", updated_at=now)
        )

        def act(connection: Connection) -> bool:
            is_ours = connection.execute(statement).rowcount > 0
            if is_ours and note is not None:
                note.write(connection, replay_id)
            return is_ours

        return await self._store.run(act)

    async def concerns(self, replay: Replay, agent_type: str) -> bool:
        """Whether the replay has replayed, or will replay, tasks of this agent type."""
        replayed = and_(_of(replay.replay_id), tasks.c.agent_type == agent_type)
        to_come = and_(replay.condition(), tasks.c.agent_type == agent_type)

        def act(connection: Connection) -> bool:
            for wanted in (replayed, to_come):
                if connection.execute(select(exists().where(wanted))).scalar_one():
                    return True
            return False

        return await self._store.read(act)

    async def outcomes(self, replay_id: str) -> Outcomes:
        """Count the outcomes of a replay's tasks."""
        by_status = select(tasks.c.status, func.count()).where(_of(replay_id)).group_by(tasks.c.status)
        same_way = select(func.count()).where(
            _of(replay_id), IS_DEAD, tasks.c.fingerprint == tasks.c.former_fingerprint
        )

        def act(connection: Connection) -> Outcomes:
            counts: dict[str, int] = {name: count for name, count in connection.execute(by_status)}  # noqa: C416
            same = int(connection.execute(same_way).scalar_one()) if counts.get(DEAD) else 0
            otherwise = sum(counts.pop(status, 0) for status in _ENDED_OTHERWISE) - same
            return Outcomes(counts.pop(SUCCEEDED, 0), same, otherwise, open=sum(counts.values()))

        return await self._store.read(act)

    async def take(
        self,
        replay: Replay,
        count: int,
        after: Position | None,
        prepare: Callable[[bytes], Fresh],
    ) -> Batch:
        """Replay the next dead letters behind a position, at most `count`, in one transaction.

        `prepare` makes the body to publish. It raises InvalidTask if the stored body is not a task.
        """

        def act(connection: Connection) -> Batch:
            page = page_of(connection, replay.condition(), count, after)
            if not page:
                return Batch(0, (), None)
            rows = _locked(connection, [position.task_id for position in page])
            fresh, problems = _prepared(rows, prepare)
            if fresh:
                _schedule(connection, replay, fresh)
            return Batch(len(fresh), problems, page[-1])

        return await self._store.run(act)


def _of(replay_id: str) -> ColumnElement[bool]:
    """The rows of a replay; the literal lets the database use the partial index."""
    return and_(tasks.c.life == replay_id, tasks.c.life != literal_column("''"))


def _locked(connection: Connection, task_ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """Lock and read the tasks that are still dead: another replay may have been faster."""
    found = connection.execute(
        select(tasks)
        .where(tasks.c.task_id.in_(task_ids), IS_DEAD)
        .order_by(tasks.c.task_id)
        .with_for_update()
    )
    return found.mappings().all()


def _prepared(
    rows: Sequence[RowMapping], prepare: Callable[[bytes], Fresh]
) -> tuple[list[tuple[RowMapping, Fresh]], list[Problem]]:
    fresh, problems = list[tuple[RowMapping, Fresh]](), list[Problem]()
    for row in rows:
        if row["body"] is None:
            problems.append(Problem(row["task_id"], NOT_READ_YET))
            continue
        try:
            fresh.append((row, prepare(row["body"])))
        except InvalidTask as error:
            problems.append(Problem(row["task_id"], str(error)))
    return fresh, problems


def _schedule(connection: Connection, replay: Replay, fresh: Sequence[tuple[RowMapping, Fresh]]) -> None:
    now = time.time()
    due = {
        "status": SCHEDULED,
        "life": replay.replay_id,
        "due_at": now,
        "leased_until": None,
        "updated_at": now,
    }
    again = [(row, one) for row, one in fresh if one.new_id is None]
    if again:
        changes = [
            {"id": row["task_id"], "fresh": one.body, "class": one.priority, "former": row["fingerprint"]}
            for row, one in again
        ]
        anew: dict[str, Any] = {"attempts": 0, "crashes": 0, "finished_at": None, "result": None}
        if replay.plan is not None and replay.plan.from_scratch:
            anew["checkpoint"] = None
            connection.execute(delete(steps).where(steps.c.task_id.in_([row["task_id"] for row, _ in again])))
        connection.execute(
            tasks.update()
            .where(tasks.c.task_id == bindparam("id"))
            .values(
                **due,
                **anew,
                dispatch=one_more(tasks.c.dispatch),
                body=bindparam("fresh"),
                priority=bindparam("class"),
                former_fingerprint=bindparam("former"),
            ),
            changes,
        )
    edited = [(row, one) for row, one in fresh if one.new_id is not None]
    if edited:
        connection.execute(tasks.insert(), [_new_row(row, one, due) for row, one in edited])
        # Their bodies stay, so that an operator can compare them with the edited tasks.
        connection.execute(
            tasks.update()
            .where(tasks.c.task_id.in_([row["task_id"] for row, _ in edited]))
            .values(status=DISCARDED, updated_at=now)
        )


def _new_row(row: RowMapping, fresh: Fresh, due: dict[str, Any]) -> dict[str, Any]:
    """The row of an edited task: a new task, published like the old one."""
    kept = ("agent_type", "user_id", "headers", "reply_to", "correlation_id")
    return {name: row[name] for name in kept} | due | {
        "task_id": fresh.new_id,
        "body": fresh.body,
        "priority": fresh.priority,
        "created_at": due["updated_at"],
        "former_fingerprint": row["fingerprint"],
        "fence": 0,
        "crashes": 0,
        "attempts": 0,
        "dispatch": 0,
    }  # fmt: skip


def _replay(row: RowMapping) -> Replay:
    """The replay in a row. If its plan cannot be read, it is shown as stopped."""
    status, reason = one_of(row["status"], get_args(Status), "stopped"), row["reason"] or ""
    plan, selected = None, 0
    try:
        plan, selected = read_plan(row["plan"])
    except ValueError as error:
        status, reason = "stopped", str(error)
    return Replay(
        replay_id=row["replay_id"],
        plan=plan,
        selected=selected,
        status=status,
        reason=reason,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
