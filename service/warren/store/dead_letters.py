"""Index of dead letters in the store: search, group, show, export, discard.

Every query names the status as a literal: with a bound parameter the database does not use its partial
indexes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, get_args
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, literal_column, or_, select

from warren.store.audit import Note
from warren.store.database import Store
from warren.store.schema import DEAD, DISCARDED, fitting, one_of, tasks
from warren.support.times import moment, moment_or_none
from warren_schemas import Reason

IS_DEAD: Final = tasks.c.status == literal_column(f"'{DEAD}'")
NOT_READ_YET: Final = (
    "its body has not been read from the dead queue yet: "
    "a worker with this store does that (WARREN_DEAD_LETTER_DESK)"
)
PAGE: Final = 50  # dead letters with their bodies in memory at once
CHUNK: Final = 500  # dead letters that are discarded in one transaction
_FILTERED: Final = (tasks.c.agent_type, tasks.c.reason, tasks.c.error_type, tasks.c.user_id)
MESSAGE_SHOWN: Final = 500  # characters of an error message where many are listed


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter for dead letters; None matches any. Times are seconds since the epoch.

    `group` is a fingerprint. `since` and `before` limit the time of death.
    """

    task_id: str | None = None
    agent_type: str | None = None
    reason: Reason | None = None
    group: str | None = None
    error_type: str | None = None
    user_id: str | None = None
    since: float | None = None
    before: float | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """The filter as JSON, without the fields that match any."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def condition(self) -> ColumnElement[bool]:
        """The filter as a condition of the database."""
        parts: list[ColumnElement[bool]] = [IS_DEAD]
        if self.task_id is not None:
            parts.append(tasks.c.task_id == UUID(self.task_id))
        if self.group is not None:
            parts.append(tasks.c.fingerprint == fitting(self.group, tasks.c.fingerprint))
        named = {column: getattr(self, column.name) for column in _FILTERED}
        parts.extend(
            column == fitting(wanted, column) for column, wanted in named.items() if wanted is not None
        )
        if self.since is not None:
            parts.append(tasks.c.finished_at >= self.since)
        if self.before is not None:
            parts.append(tasks.c.finished_at < self.before)
        return and_(*parts)


class Position(NamedTuple):
    """A place in the order of dead letters, which is by time of death (seconds since the epoch)."""

    died_at: float
    task_id: UUID


@dataclass(frozen=True, slots=True)
class DeadTask:
    """A dead task without its body. `can_be_replayed`: its body has been read from the dead queue."""

    task_id: UUID
    agent_type: str
    user_id: str
    reason: str
    error_type: str
    error_message: str
    fingerprint: str
    attempts: int
    worker_id: str | None
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    died_at: datetime
    replay_id: str | None
    can_be_replayed: bool


@dataclass(frozen=True, slots=True)
class DeadLetter(DeadTask):
    """Everything about a dead task. `headers` is JSON."""

    traceback: str | None
    created_at: datetime | None
    priority: int | None
    reply_to: str | None
    correlation_id: str | None
    headers: bytes | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters with one fingerprint; `sample` is one of the newest."""

    fingerprint: str
    count: int
    first_seen: datetime
    last_seen: datetime
    agent_types: list[str]
    sample: DeadTask | None


class DeadIndex:
    """The dead letters of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def count(self, wanted: Filter) -> int:
        """The number of matching dead letters."""

        def act(connection: Connection) -> int:
            query = select(func.count()).select_from(tasks).where(wanted.condition())
            return int(connection.execute(query).scalar_one())

        return await self._store.read(act)

    async def find(
        self,
        wanted: Filter,
        limit: int,
        *,
        oldest_first: bool = False,
        after: Position | None = None,
    ) -> list[DeadTask]:
        """At most `limit` dead letters behind the position `after`; the newest first by default."""
        query = _ordered(wanted, _SUMMARY, limit, oldest_first=oldest_first, after=after)

        def act(connection: Connection) -> list[DeadTask]:
            return [_dead_task(row) for row in connection.execute(query).mappings()]

        return await self._store.read(act)

    async def page(
        self, wanted: Filter, limit: int, after: Position | None = None
    ) -> tuple[list[DeadTask], Position | None]:
        """A page, the newest first, and the position of the next page; None if there is none."""
        query = _ordered(wanted, _SUMMARY, limit + 1, oldest_first=False, after=after)
        rows = await self._store.read(partial(_rows, query))
        # The position comes from the row: a datetime is only precise to microseconds.
        last = rows[limit - 1] if len(rows) > limit else None
        return [_dead_task(row) for row in rows[:limit]], (
            None if last is None else Position(last["finished_at"], last["task_id"])
        )

    async def groups(self, wanted: Filter, limit: int) -> list[Group]:
        """The largest groups of similar failures, at most `limit`."""
        query = (
            select(
                tasks.c.fingerprint,
                tasks.c.agent_type,
                func.count().label("count"),
                func.min(tasks.c.finished_at).label("first"),
                func.max(tasks.c.finished_at).label("last"),
            )
            .where(wanted.condition())
            .group_by(tasks.c.fingerprint, tasks.c.agent_type)
        )

        def act(connection: Connection) -> list[Group]:
            parts: dict[str, list[RowMapping]] = {}
            for row in connection.execute(query).mappings():
                parts.setdefault(row["fingerprint"], []).append(row)
            largest = sorted(parts.values(), key=lambda rows: -sum(row["count"] for row in rows))[:limit]
            return [_group(connection, rows) for rows in largest]

        return await self._store.read(act)

    async def show(self, task_id: UUID) -> DeadLetter | None:
        """Everything about one dead letter, or None if the task is not dead."""
        query = select(*_EVERYTHING).where(IS_DEAD, tasks.c.task_id == task_id)

        def act(connection: Connection) -> DeadLetter | None:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else _dead_letter(row)

        return await self._store.read(act)

    async def export(self, wanted: Filter) -> AsyncIterator[DeadLetter]:
        """Everything about each dead letter, the oldest first. One page is in memory at a time."""
        after: Position | None = None
        while True:
            query = _ordered(wanted, _EVERYTHING, PAGE, oldest_first=True, after=after)
            rows = await self._store.read(partial(_rows, query))
            for row in rows:
                yield _dead_letter(row)
            if len(rows) < PAGE:
                return
            after = Position(rows[-1]["finished_at"], rows[-1]["task_id"])

    async def discard(self, wanted: Filter, limit: int | None = None, note: Note | None = None) -> int:
        """Discard dead letters for good, the oldest first, and delete their bodies. Returns their number.

        It takes several transactions. The audit note is written in the first one that discards any.
        """
        done = 0
        after: Position | None = None
        while limit is None or done < limit:
            size = CHUNK if limit is None else min(CHUNK, limit - done)
            first = note if done == 0 else None
            discarded, after = await self._store.run(partial(_discard_next, wanted, size, after, first))
            done += discarded
            if after is None:
                break
        return done


def page_of(
    connection: Connection, condition: ColumnElement[bool], size: int, after: Position | None
) -> Sequence[Position]:
    """The next dead letters behind a position, the oldest first. Not locked: lock and check again."""
    query = select(tasks.c.finished_at, tasks.c.task_id).where(condition)
    query = query.order_by(tasks.c.finished_at, tasks.c.task_id).limit(size)
    if after is not None:
        query = query.where(_behind(after, oldest_first=True))
    return [Position(*row) for row in connection.execute(query)]


def _rows(query: Select[Any], connection: Connection) -> Sequence[RowMapping]:
    return connection.execute(query).mappings().all()


def _discard_next(
    wanted: Filter, size: int, after: Position | None, note: Note | None, connection: Connection
) -> tuple[int, Position | None]:
    """Discard the next page. Returns their number, and where to go on; None at the end."""
    page = page_of(connection, wanted.condition(), size, after)
    if not page:
        return 0, None
    done = _discard(connection, [position.task_id for position in page])
    if done and note is not None:
        note.write(connection, "dead letters")
    return done, page[-1]


def _discard(connection: Connection, task_ids: Sequence[UUID]) -> int:
    """Discard those that are still dead: a replay may have been faster. Returns their number."""
    nothing = {"body": None, "headers": None, "result": None, "checkpoint": None}
    done = connection.execute(
        tasks.update()
        .where(tasks.c.task_id.in_(task_ids), IS_DEAD)
        .values(status=DISCARDED, updated_at=time.time(), **nothing)
    )
    return done.rowcount


def _ordered(
    wanted: Filter, columns: Sequence[Any], limit: int, *, oldest_first: bool, after: Position | None
) -> Any:
    query = select(*columns).where(wanted.condition()).limit(limit)
    if after is not None:
        query = query.where(_behind(after, oldest_first=oldest_first))
    order = (tasks.c.finished_at, tasks.c.task_id)
    return query.order_by(*(order if oldest_first else (column.desc() for column in order)))


def _behind(after: Position, *, oldest_first: bool) -> ColumnElement[bool]:
    died_at, task_id = after
    time_is, id_is = tasks.c.finished_at, tasks.c.task_id
    if oldest_first:
        return and_(time_is >= died_at, or_(time_is > died_at, id_is > task_id))
    return and_(time_is <= died_at, or_(time_is < died_at, id_is < task_id))


def _group(connection: Connection, parts: Sequence[RowMapping]) -> Group:
    newest = max(parts, key=lambda row: row["last"])
    query = (
        select(*_SUMMARY)
        .where(
            IS_DEAD,
            tasks.c.fingerprint == newest["fingerprint"],
            tasks.c.agent_type == newest["agent_type"],
            tasks.c.finished_at == newest["last"],
        )
        .limit(1)
    )
    sample = connection.execute(query).mappings().first()
    return Group(
        fingerprint=newest["fingerprint"] or "",
        count=sum(row["count"] for row in parts),
        first_seen=moment(min(row["first"] for row in parts)),
        last_seen=moment(newest["last"]),
        agent_types=sorted(row["agent_type"] for row in parts),
        sample=None if sample is None else _dead_task(sample),
    )


_PLAIN: Final = ("task_id", "agent_type", "user_id", "attempts", "worker_id")
# A row that another program wrote may lack these. It must not make the list unreadable.
_TOLD: Final = ("error_type", "error_message", "fingerprint")
_SUMMARY: Final = (
    *(tasks.c[name] for name in _PLAIN),
    tasks.c.reason,
    tasks.c.error_type,
    tasks.c.fingerprint,
    func.substr(tasks.c.error_message, 1, MESSAGE_SHOWN).label("error_message"),
    tasks.c.first_failed_at,
    tasks.c.last_failed_at,
    tasks.c.finished_at,
    tasks.c.life,
    tasks.c.body.is_not(None).label("has_body"),
)
_CONTENT: Final = ("traceback", "priority", "reply_to", "correlation_id", "headers", "body")
_EVERYTHING: Final = (
    *(column for column in _SUMMARY if column.name != "error_message"),
    tasks.c.error_message,
    tasks.c.created_at,
    *(tasks.c[name] for name in _CONTENT),
)


def _summary(row: RowMapping) -> dict[str, Any]:
    return {name: row[name] for name in _PLAIN} | {
        **{name: row[name] or "" for name in _TOLD},
        "reason": one_of(row["reason"], get_args(Reason), "rejected"),
        "first_failed_at": moment_or_none(row["first_failed_at"]),
        "last_failed_at": moment_or_none(row["last_failed_at"]),
        "died_at": moment(row["finished_at"]),
        "replay_id": row["life"] or None,
        "can_be_replayed": row["has_body"],
    }


def _dead_task(row: RowMapping) -> DeadTask:
    return DeadTask(**_summary(row))


def _dead_letter(row: RowMapping) -> DeadLetter:
    return DeadLetter(
        **_summary(row),
        created_at=moment_or_none(row["created_at"]),
        **{name: row[name] for name in _CONTENT},
    )
