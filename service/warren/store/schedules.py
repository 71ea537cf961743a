"""Schedules of recurring tasks: one row for each schedule, which the first worker to see it due moves on.

A tick becomes a row of `tasks`, written in the transaction that moves the schedule on; the relay publishes
it. The task id is made of the schedule's name and the tick, so a tick cannot become two tasks, even if clocks
are wrong. Times are seconds since the epoch.
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
SKEW: Final = 60.0  # seconds that the clocks of a fleet may differ; more means that a clock was wrong
FIRST_PAUSE: Final = 0.5  # seconds before a schedule that could not fire is tried again; doubles each time
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
        """The schedule for the audit log, without its payload, which may hold private data."""
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
    """Runs a function in a transaction, as `Ledger.surely` does."""

    async def __call__(self, act: Callable[[Connection], T]) -> T:
        """Run `act` and return what it returns."""


class Schedules:
    """The schedules of a store.

    With a ledger's `surely`, every operation waits while the store is away; without it, operations raise
    StoreUnavailable. `clock` is read inside each transaction, so the time is right even after a long wait.
    """

    def __init__(
        self, store: Store, surely: Surely | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._clock = store, clock
        self._surely = surely or store.run
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        # Schedules whose next tick was found right: (next_at, time of the check). It stays right as long as
        # the clock goes forward.
        self._sound: dict[str, tuple[float, float]] = {}
        self._told: set[str] = set()
        # Schedules that could not fire: the time of the next try, and the length of the last pause.
        self._held: dict[str, tuple[float, float]] = {}

    # -- keeping them -------------------------------------------------------------------------------------

    async def add(self, schedule: Schedule, note: Note | None = None) -> Schedule:
        """Add a schedule, or change the one with its name. Returns the stored schedule.

        Only a changed cron moves the next tick.

        Raises ConfigurationError for a wrong cron, or if the name belongs to an agent's `every=`;
        pydantic.ValidationError if the schedule does not make a valid task.
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
        """Remove a schedule. False if there is none with this name."""

        def act(connection: Connection) -> bool:
            gone = connection.execute(delete(schedules).where(schedules.c.name == name))
            if note is not None and gone.rowcount:
                note.write(connection, name)
            return gone.rowcount > 0

        return await self._surely(act)

    async def all(self) -> Sequence[Schedule]:
        """All schedules, sorted by name."""

        def act(connection: Connection) -> Sequence[Schedule]:
            rows = connection.execute(select(schedules).order_by(schedules.c.name)).mappings()
            return [_read(row) for row in rows]

        return await self._surely(act)

    async def adopt(self, agent_types: Collection[str], every: Mapping[str, str]) -> None:
        """Make the stored schedules of these agents match their code; `every` has the crons.

        A schedule that a person made is never changed, even if it has the name of an agent type.
        """

        def act(connection: Connection) -> list[str]:
            taken = []
            # Sorted by name, as in `fire`, so that two transactions cannot deadlock.
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
        """Insert or update a schedule, and return the stored one.

        None, and no change, if a person made the schedule with this name and this one is an agent's, or the
        reverse.
        """
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
        """Make a task of every due schedule, for its last tick only: earlier missed ticks are skipped.

        It fires at most 50 at once, so that other users of the store do not wait long. Call it again until
        nothing fires.
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
                with connection.begin_nested():  # a refusal by the database rolls back only this schedule
                    if row["next_at"] > now:
                        self._heal(connection, row, now)
                    elif due < BATCH:
                        fired += self._fire_one(connection, row, now)
                        due += 1
            except (OperationalError, InterfaceError):
                raise  # the store is away
            except Exception as error:  # noqa: BLE001 - a bad row must not stop the others
                self._hold(row, now, error)
        return fired

    def _fire_one(self, connection: Connection, row: RowMapping, now: float) -> list[Fired]:
        """Move the schedule on and make the task. Returns no tick if another worker was faster."""
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
        """Correct a next tick that a clock ahead of time has moved too far.

        The next tick but one is still accepted, and so is the next tick by a clock up to SKEW ahead of ours.
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
        """Compare and set: the changed schedule, or None if another worker has moved it."""
        as_seen = (schedules.c.name == row["name"]) & (schedules.c.next_at == row["next_at"])
        statement = update(schedules).where(as_seen).values(next_at=next_at, **values).returning(schedules)
        return _schedule(connection.execute(statement))

    def _hold(self, row: RowMapping, now: float, error: Exception) -> None:
        """Pause a schedule that failed, longer each time, and log each error once.

        A row that a newer Warren or a person wrote must not stop the others.
        """
        pause = min(2 * self._held.get(row["name"], (0.0, FIRST_PAUSE / 2))[1], LONGEST_PAUSE)
        self._held[row["name"]] = now + pause, pause
        text = f"{row['name']}: {error}"
        if text not in self._told:
            self._told.add(text)
            log.error("schedule.unreadable", schedule=row["name"], error=str(error))


def task_of(schedule: Schedule, tick: float) -> Task:
    """The task of one tick. Raises ValueError (pydantic.ValidationError) if it would not be a valid task."""
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
    """The schedule in a row, for display. Words that this version does not know become the defaults.

    Such a schedule does not fire with the defaults: the meaning of an unknown word is not known.
    """
    return Schedule(
        **{
            **row,
            "priority": one_of(row["priority"], get_args(Priority), "medium"),
            "made_by": one_of(row["made_by"], get_args(MadeBy), "person"),
        }
    )
