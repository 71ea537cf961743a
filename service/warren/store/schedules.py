"""Recurring tasks in the store: one row for each schedule, moved on by whichever worker is first.

A tick becomes a row of `tasks`, written in the transaction that moves the schedule on; the relay publishes
it. Its task id follows from the schedule and the tick, so no tick can become two tasks, whatever the clocks
do. Times are seconds since the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol, TypeVar, get_args
from uuid import UUID, uuid5

import structlog
from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import Connection, CursorResult, RowMapping, case, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError

from warren.errors import ConfigurationError
from warren.store.audit import Note
from warren.store.database import Store
from warren.store.outbox import body_of, waiting_row
from warren.store.schema import fitting, one_of, schedules, tasks
from warren.store.stored_message import Parcel
from warren.support import cron
from warren.support.times import moment
from warren_schemas import AMQP_PRIORITY, Priority, Task

log = structlog.get_logger(__name__)

T = TypeVar("T")

TICKS: Final = UUID("5f0c2b6e-9d0a-4c62-9d5c-5b1d3e0f7a41")
"""The namespace (RFC 9562, version 5) of the ids of recurring tasks."""
SKEW: Final = 60.0  # seconds that the clocks of a fleet may differ, without one of them having jumped
FIRST_PAUSE: Final = 0.5  # seconds that a schedule is left alone which cannot be fired; doubles up to
LONGEST_PAUSE: Final = 60.0
BATCH: Final = 50  # schedules that fire in one transaction

MadeBy = Literal["agent", "person"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring task. `payload` is JSON; `next_at` and `last_at` are ticks, set by the store."""

    name: str
    agent_type: str
    cron: str
    payload: bytes = b"null"
    user_id: str = "default"
    priority: Priority = "medium"
    made_by: MadeBy = "person"
    next_at: float = 0.0
    last_at: float | None = None

    def without_payload(self) -> dict[str, JsonValue]:
        """What it is, for whoever reads the audit and need not read that."""
        return {
            "agent_type": self.agent_type,
            "cron": self.cron,
            "user_id": self.user_id,
            "priority": self.priority,
            "payload_bytes": len(self.payload),
        }


@dataclass(frozen=True, slots=True)
class Fired:
    """One tick that has become a task."""

    name: str
    agent_type: str
    tick: float
    task_id: UUID


class Surely(Protocol):
    """Runs something in a transaction, as `Ledger.surely` does."""

    async def __call__(self, act: Callable[[Connection], T]) -> T:
        """Run `act` and return what it returns."""


class Schedules:
    """The schedules of a store.

    With `surely` (a ledger's) whatever is asked waits while the store is away; without it StoreUnavailable is
    raised. `clock` is read inside each transaction, so what had to wait is no late news.
    """

    def __init__(
        self, store: Store, surely: Surely | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._clock = store, clock
        self._surely = surely or store.run
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        # What was in order stays so as long as the clock goes forward: (next_at, when it was looked at).
        self._sound: dict[str, tuple[float, float]] = {}
        self._told: set[str] = set()
        # What could not be fired: until when it is left alone, and the pause that was.
        self._held: dict[str, tuple[float, float]] = {}

    # -- keeping them -------------------------------------------------------------------------------------

    async def add(self, schedule: Schedule, note: Note | None = None) -> Schedule:
        """Add a schedule, or change the one of its name, and return it as it is kept.

        Only a changed cron moves its next tick.

        Raises ConfigurationError for a wrong cron, pydantic.ValidationError for what makes no task, and
        ConfigurationError where the name belongs to an agent's `every=`.
        """
        cron.check(schedule.cron)
        task_of(schedule, self._clock())

        def act(connection: Connection) -> Schedule | None:
            kept = self._upsert(connection, schedule)
            if kept is not None and note is not None:
                note.write(connection, kept.name)
            return kept

        kept = await self._surely(act)
        if kept is None:
            raise ConfigurationError(
                f"the schedule {schedule.name!r} comes from its agent, which has every= in its code: "
                "choose another name"
            )
        return kept

    async def remove(self, name: str, note: Note | None = None) -> bool:
        """Remove a schedule. False when there is none of this name."""

        def act(connection: Connection) -> bool:
            gone = connection.execute(delete(schedules).where(schedules.c.name == name))
            if note is not None and gone.rowcount:
                note.write(connection, name)
            return gone.rowcount > 0

        return await self._surely(act)

    async def all(self) -> Sequence[Schedule]:
        """All schedules, by their names."""

        def act(connection: Connection) -> Sequence[Schedule]:
            rows = connection.execute(select(schedules).order_by(schedules.c.name)).mappings()
            return [_read(row) for row in rows]

        return await self._surely(act)

    async def adopt(self, agent_types: Collection[str], every: Mapping[str, str]) -> None:
        """Make the schedules of these agents what their code says: `every` is the cron of those that recur.

        A schedule that a person made is never changed, even if it has the name of an agent type.
        """

        def act(connection: Connection) -> list[str]:
            taken = []
            # By name, as in `fire`: two that lock the same rows in another order would wait for each other.
            for name in sorted(agent_types):
                if name not in every:
                    old = (schedules.c.name == name) & (schedules.c.made_by == "agent")
                    connection.execute(delete(schedules).where(old))
                    continue
                ours = Schedule(name, name, every[name], made_by="agent")
                if self._upsert(connection, ours) is None:
                    taken.append(name)
            return taken

        for name in await self._surely(act):
            log.warning(
                "schedule.name_taken",
                schedule=name,
                hint="a person made a schedule of this name, so this agent's every= is not used: "
                f"`warren schedule remove {name}` gives the name back",
            )

    def _upsert(self, connection: Connection, schedule: Schedule) -> Schedule | None:
        """The schedule as it is kept. None, and nothing changed, when a person made the one of this name and
        this is an agent's, or the other way round."""
        values = asdict(schedule) | {
            "cron": schedule.cron.strip(),
            "user_id": fitting(schedule.user_id, schedules.c.user_id),
            "next_at": cron.next_after(schedule.cron, self._clock()),
        }
        insert = self._insert(schedules).values(values)
        new = insert.excluded
        changed = {name: new[name] for name in ("agent_type", "cron", "payload", "user_id", "priority")}
        unmoved = case((schedules.c.cron == new.cron, schedules.c.next_at), else_=new.next_at)
        statement = insert.on_conflict_do_update(
            index_elements=[schedules.c.name],
            set_=changed | {"next_at": unmoved},
            where=schedules.c.made_by == new.made_by,
        ).returning(schedules)
        return _schedule(connection.execute(statement))

    # -- firing -------------------------------------------------------------------------------------------

    async def fire(self) -> Sequence[Fired]:
        """Make a task of every schedule that is due: of its last tick, whatever was missed before that.

        At most 50 at once, so that nobody waits long for the store: call it again until nothing fires.
        """
        return await self._surely(self._fire)

    def _fire(self, connection: Connection) -> Sequence[Fired]:
        now = self._clock()
        query = select(schedules.c.name, schedules.c.cron, schedules.c.next_at).where(
            or_(schedules.c.next_at <= now, schedules.c.next_at > now + SKEW)
        )
        fired: list[Fired] = []
        due = 0
        for row in connection.execute(query.order_by(schedules.c.name)).mappings().all():
            if self._held.get(row["name"], (0.0, 0.0))[0] > now:
                continue
            try:
                with connection.begin_nested():  # what the database refuses undoes this one alone
                    if row["next_at"] > now:
                        self._heal(connection, row, now)
                    elif due < BATCH:
                        fired += self._fire_one(connection, row, now)
                        due += 1
            except (OperationalError, InterfaceError):
                raise  # the store is away
            except Exception as error:  # noqa: BLE001 - whatever is in the row, the others go on
                self._hold(row, now, error)
        return fired

    def _fire_one(self, connection: Connection, row: RowMapping, now: float) -> list[Fired]:
        """Move the schedule on, and make the task; nothing where another was faster."""
        tick = cron.last_until(row["cron"], now)
        moved = self._move(connection, row, cron.next_after(row["cron"], now), last_at=tick)
        if moved is None:
            return []
        task = task_of(moved, tick)
        parcel = Parcel(body_of(task), b"{}", AMQP_PRIORITY[task.priority])
        waiting = waiting_row(task.task_id, task.agent_type, task.user_id, parcel, now)
        new = self._insert(tasks).values(waiting).on_conflict_do_nothing()
        if connection.execute(new.returning(tasks.c.task_id)).one_or_none() is None:
            return []
        return [Fired(row["name"], task.agent_type, tick, task.task_id)]

    def _heal(self, connection: Connection, row: RowMapping, now: float) -> None:
        """Bring back what a clock that was ahead has moved on too far.

        The next tick but one is still in order, and so is the next of a clock that is a little ahead of ours.
        """
        known = self._sound.get(row["name"])
        if known is not None and known[0] == row["next_at"] and known[1] <= now:
            return
        first = cron.next_after(row["cron"], now)
        if row["next_at"] <= cron.next_after(row["cron"], max(first, now + SKEW)):
            self._sound[row["name"]] = (row["next_at"], now)
        elif self._move(connection, row, first) is not None:
            log.warning("schedule.pulled_back", schedule=row["name"], was=row["next_at"], next_at=first)

    def _move(
        self, connection: Connection, row: RowMapping, next_at: float, **values: float
    ) -> Schedule | None:
        """Compare and set: the schedule as it is now, or None when somebody else has moved it."""
        as_seen = (schedules.c.name == row["name"]) & (schedules.c.next_at == row["next_at"])
        statement = update(schedules).where(as_seen).values(next_at=next_at, **values).returning(schedules)
        return _schedule(connection.execute(statement))

    def _hold(self, row: RowMapping, now: float, error: Exception) -> None:
        """One row that a newer Warren or a person wrote must not stop the others. Told once, and looked at
        again after a pause that grows.
        """
        pause = min(2 * self._held.get(row["name"], (0.0, FIRST_PAUSE / 2))[1], LONGEST_PAUSE)
        self._held[row["name"]] = now + pause, pause
        text = f"{row['name']}: {error}"
        if text not in self._told:
            self._told.add(text)
            log.error("schedule.unreadable", schedule=row["name"], error=str(error))


def task_of(schedule: Schedule, tick: float) -> Task:
    """The task of one tick. Raises ValueError (pydantic.ValidationError) for what makes no task."""
    at = moment(tick)
    return Task(
        version=1,
        task_id=uuid5(TICKS, f"{schedule.name} {at.isoformat()}"),
        agent_type=schedule.agent_type,
        payload=from_json(schedule.payload),
        user_id=schedule.user_id,
        priority=schedule.priority,
        created_at=at,
        metadata={"schedule": schedule.name},
    )


def _schedule(returned: CursorResult[Any]) -> Schedule | None:
    row = returned.mappings().one_or_none()
    return None if row is None else Schedule(**row)


def _read(row: RowMapping) -> Schedule:
    """The schedule in a row, to be shown: with the defaults for words that this version does not know.

    It does not fire like that: what an unknown word asks for is not known.
    """
    return Schedule(
        **{
            **row,
            "priority": one_of(row["priority"], get_args(Priority), "medium"),
            "made_by": one_of(row["made_by"], get_args(MadeBy), "person"),
        }
    )
