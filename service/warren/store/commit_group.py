"""Group commit for the ends of runs: one transaction and one trip to the database for a whole group."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
)
from sqlalchemy.dialects import postgresql, sqlite

from warren.store.columns import plain
from warren.store.database import Store
from warren.store.drivers import transaction
from warren.store.schema import SUCCEEDED, fitting, tasks
from warren.store.stored_message import Parcel

# The columns that the end of a run writes.
IDENTITY: Final = ("task_id", "life", "agent_type", "user_id", "status", "fence", "attempts", "worker_id")
FAILURE: Final = (
    "reason",
    "error_type",
    "error_message",
    "traceback",
    "fingerprint",
    "first_failed_at",
    "last_failed_at",
)
# The owner of the row. The end of a run never changes it.
OWNER: Final = ("agent_type", "user_id")
GOOD_END: Final = (*IDENTITY, "result")
# The content needed to run a dead task again. Written with the end, it allows a replay at once.
CONTENT: Final = ("body", "headers", "priority", "reply_to", "correlation_id", "created_at")
ANY_END: Final = (*GOOD_END, *FAILURE, *CONTENT)
WRITTEN: Final = ("crashes", "finished_at", "updated_at")  # in addition to the entry's columns
# A statement for SQLite has places for a multiple of this many rows. To prepare a statement takes as long as
# to run it, so there are few sizes, and statements are reused.
ROOM: Final = 16


class Verdict(Enum):
    """Whether the end of a run was written."""

    COUNTS = "counts"
    OVERTAKEN = "overtaken"
    """The task belongs to a newer run, has ended, or was never this run's: nothing was changed."""
    REFUSED = "refused"
    """The store refuses the write: nothing was changed."""

    @classmethod
    def of(cls, counts: bool) -> Verdict:  # noqa: FBT001 - a conversion
        """The verdict on a row that was changed, or was not."""
        return cls.COUNTS if counts else cls.OVERTAKEN


@dataclass(slots=True)
class Entry:
    """The end of one run, as it is written. `fence` is the run's own; 0 if it took none.

    Do not change an entry. The class is not frozen, because a frozen instance takes seven times as long to
    make, and a task makes two.
    """

    task_id: UUID
    life: str
    agent_type: str
    user_id: str
    status: str
    fence: int
    attempts: int
    worker_id: str
    result: bytes | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    fingerprint: str | None = None
    first_failed_at: float | None = None
    last_failed_at: float | None = None
    parcel: Parcel | None = None
    created_at: float | None = None


class Sqlite:
    """Writes a group to SQLite with a single statement, which has a place for each value of each row.

    The driver releases the interpreter lock during a statement and must get it back afterwards. A busy event
    loop delays that each time, so a statement for each row, or an extra begin and commit, would be slow. A
    single statement is a transaction by itself.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._good, self._any = (_SqliteStatement(columns) for columns in (GOOD_END, ANY_END))

    async def write(self, group: Sequence[Entry]) -> list[bool]:
        """Write the group in one commit. Returns for each entry whether it changed its row."""
        # Most runs succeed: leaving out the columns of failures saves a quarter of the time.
        good = all(entry.status == SUCCEEDED for entry in group)
        statement, values = (self._good, _good_values) if good else (self._any, _any_values)
        rows = _rows(group, values)
        return await self._store.run_bare(lambda connection: statement.write(connection, rows))

    def write_within(self, connection: Connection, group: Sequence[Entry]) -> list[bool]:
        """The same inside a transaction."""
        driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        return self._any.write(driver, _rows(group, _any_values), lambda _: nullcontext())


class Postgresql:
    """Writes a group to PostgreSQL with one statement, whose parameters are the columns of the group.

    A statement with a place for each value of each row takes five times as much processor time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._statement = _postgresql_statement()

    async def write(self, group: Sequence[Entry]) -> list[bool]:
        """Write the group in one transaction. Returns for each entry whether it changed its row."""
        return await self._store.run(lambda connection: self.write_within(connection, group))

    def write_within(self, connection: Connection, group: Sequence[Entry]) -> list[bool]:
        """The same inside a transaction."""
        columns = zip(*(_any_values(entry) for entry in group), strict=True)
        parameters: dict[str, Any] = {
            f"all_{name}": list(values) for name, values in zip(ANY_END, columns, strict=True)
        }
        parameters["now"] = time.time()
        won = set(connection.execute(self._statement, parameters).scalars())
        return [entry.task_id in won for entry in group]


_good_values, _failure = attrgetter(*GOOD_END), attrgetter(*FAILURE)
_NO_CONTENT: Final = (None,) * len(CONTENT)


def _rows(group: Sequence[Entry], values: Callable[[Entry], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of a group for SQLite; the last value of each is the time."""
    now = time.time()
    return [(task_id.hex, *rest, now) for task_id, *rest in map(values, group)]


def _any_values(entry: Entry) -> tuple[Any, ...]:
    """The values of ANY_END. Texts of a failure are made to fit their columns."""
    texts = (
        fitting(value, tasks.c[name]) if isinstance(value, str) else value
        for name, value in zip(FAILURE, _failure(entry), strict=True)
    )
    return (*_good_values(entry), *texts, *_content(entry))


def _content(entry: Entry) -> tuple[Any, ...]:
    kept = entry.parcel
    if kept is None:
        return _NO_CONTENT
    reply_to, correlation_id = (
        None if text is None else fitting(text, tasks.c[name])
        for name, text in (("reply_to", kept.reply_to), ("correlation_id", kept.correlation_id))
    )
    return kept.body, kept.headers, kept.priority, reply_to, correlation_id, entry.created_at


def _is_ours(new: Any) -> ColumnElement[bool]:
    """Whether the existing row may be changed: not if it has ended, has a newer fence or life, or belongs to
    another user's task.
    """
    return and_(
        *(tasks.c[name] == new[name] for name in OWNER),
        tasks.c.fence <= new.fence,
        or_(tasks.c.finished_at.is_(None), tasks.c.life < new.life),
    )


def _changes(new: Any, columns: Sequence[str]) -> dict[str, Any]:
    ours = [name for name in (*ANY_END, *WRITTEN) if name not in ("task_id", "fence", *OWNER, *CONTENT)]
    changes = {name: new[name] for name in ours} | {"due_at": null(), "leased_until": null()}
    if "body" in columns:  # a task that waited in the store has its body in the row already
        changes |= {name: func.coalesce(new[name], tasks.c[name]) for name in CONTENT}
    return changes


def _unless_overtaken(statement: Any, columns: Sequence[str]) -> Any:
    """Insert, or update the row if it is still ours."""
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[tasks.c.task_id], set_=_changes(new, columns), where=_is_ours(new)
    )


def _all_or_nothing(statement: Any, columns: Sequence[str]) -> Any:
    """Change all rows or none: a row that is not ours gets the status NULL, which its column refuses."""
    new = statement.excluded
    changes = _changes(new, columns) | {"status": case((_is_ours(new), new.status))}
    return statement.on_conflict_do_update(index_elements=[tasks.c.task_id], set_=changes)


class _SqliteStatement:
    """Writes rows whose values are in the order of `columns`, with the time as the last value."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._names = [*columns, "at"]
        new = table("new", *map(column, self._names))
        rows = select(*(new.c[name] for name in columns), literal_column("0"), new.c.at, new.c.at)
        insert = sqlite.insert(tasks).from_select(
            [*columns, *WRITTEN], rows.where(new.c.task_id.is_not(None))
        )
        self._together = _all_or_nothing(insert, columns)
        self._single = self._of(1, _unless_overtaken(insert, columns))
        self._with_room_for: dict[int, str] = {}

    def write(
        self,
        connection: sqlite3.Connection,
        rows: Sequence[tuple[Any, ...]],
        together: Callable[[sqlite3.Connection], AbstractContextManager[None]] = transaction,
    ) -> list[bool]:
        """Write the rows in one transaction, which `together` makes. Returns for each whether it counts."""
        count = -(-len(rows) // ROOM) * ROOM
        values = list(chain.from_iterable(rows))
        values += [None] * (len(self._names) * (count - len(rows)))
        # Before version 3.32 SQLite accepts 999 values in one statement (https://sqlite.org/limits.html).
        if len(values) <= connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER):
            # It is refused if some rows were overtaken, which is rare. Then each row is written by itself.
            with suppress(sqlite3.IntegrityError):
                if count not in self._with_room_for:
                    self._with_room_for[count] = self._of(count, self._together)
                connection.execute(self._with_room_for[count], values)
                return [True] * len(rows)
        with together(connection):
            return [connection.execute(self._single, row).rowcount > 0 for row in rows]

    def _of(self, count: int, statement: Any) -> str:
        """The statement with places for `count` rows, which stand in a common table expression."""
        row = f"({', '.join('?' * len(self._names))})"
        rows = f"WITH new ({', '.join(self._names)}) AS (VALUES {', '.join([row] * count)}) SELECT"
        return str(statement.compile(dialect=sqlite.dialect())).replace("SELECT", rows, 1)


def _postgresql_statement() -> Any:
    """The statement. Its parameters are an array `all_<column>` for each column, and the time `now`."""
    arrays = [bindparam(f"all_{name}", type_=postgresql.ARRAY(plain(tasks.c[name]))) for name in ANY_END]
    new = func.unnest(*arrays).table_valued(*ANY_END, name="new").render_derived()
    now = bindparam("now", type_=tasks.c.finished_at.type)
    rows = select(*(new.c[name] for name in ANY_END), literal_column("0"), now, now)
    statement = postgresql.insert(tasks).from_select([*ANY_END, *WRITTEN], rows)
    return _unless_overtaken(statement, ANY_END).returning(tasks.c.task_id)
