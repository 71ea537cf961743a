"""The ledger: one row for each task that ended, was looked up, or remembered something.

A first run leaves no row until it ends: only a delivery that may be a second copy pays for a look-up, and
takes a fence. Every write carries the fence of its run and changes nothing when a newer one was taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from warren.errors import FenceLost
from warren.histogram import Histogram
from warren.store import Store
from warren.store_finish import Entry, Postgresql, Sqlite
from warren.store_patience import PatientStore
from warren.store_schema import FINAL, LARGEST, RELEASED, RUNNING, attempts, fitting, steps, tasks

__all__ = ["Claim", "Entry", "Ledger"]

GROUP: Final = 500  # rows in one commit at most

Ending: TypeAlias = tuple[Entry, Callable[[bool], None]]
"""The end of a run, and who is told whether it counts."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a task when a run takes it over.

    `kept` is the row of one that has ended already: then there is nothing to run. `is_stale`: another message
    is the live one. `crashes` counts runs that began, were recorded and never ended.
    """

    fence: int
    crashes: int
    steps: dict[str, bytes] = field(default_factory=dict)
    checkpoint: bytes | None = None
    kept: dict[str, Any] | None = None
    is_stale: bool = False


class Ledger(PatientStore):
    """Writes and reads the ledger for one worker. Whatever it is asked waits while the store is away.

    `commits` takes how long the groups of ends took to be durable.
    """

    def __init__(self, store: Store, worker_id: str, on_change: Callable[[bool, str], None]) -> None:
        super().__init__(store, on_change)
        self._worker_id = worker_id
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        self._group = Sqlite(store) if store.is_sqlite else Postgresql(store)
        self._waiting: list[Ending] = []
        self._attempts: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self.commits = Histogram()

    # -- the end of a run ---------------------------------------------------------------------------------

    async def finish(self, entry: Entry) -> bool:
        """Write the end of a run, together with others. Durable when it returns.

        False: a newer run has taken the task over, and this one's end changed nothing.
        """
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(counts: bool) -> None:  # noqa: FBT001 - a callback's signature
            if not written.done():
                written.set_result(counts)

        self.finish_then(entry, settle)
        return await written

    def finish_then(self, entry: Entry, then: Callable[[bool], None]) -> None:
        """The same without waiting: `then(counts)` is called when it is durable, or has changed nothing.

        It must not raise: that would end the loop which writes, and with it the worker.
        To wake somebody for each end of a group takes as long as to write it.
        """
        self._waiting.append((entry, then))
        self._wake.set()

    def note_attempt(self, run: Entry, number: int, error_type: str, error_message: str) -> None:
        """Write down a failed attempt soon: to be looked at, nothing depends on it."""
        row = {
            "task_id": run.task_id,
            "life": run.life,
            "number": min(number, LARGEST),
            "worker_id": self._worker_id,
        }
        row |= {"failed_at": time.time(), "error_type": fitting(error_type, attempts.c.error_type)}
        row |= {"error_message": fitting(error_message, attempts.c.error_message)}
        self._attempts.append(row)
        self._wake.set()

    async def run(self) -> None:
        """Write what has come together, for ever: one commit at a time, while the next group gathers."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._attempts:
                noted, self._attempts = self._attempts, []
                await self.surely(lambda connection: self._note(connection, noted))  # noqa: B023
            group = self._next_group()
            if group:
                entries = [entry for entry, _ in group]
                won = await self._patiently(lambda: self._write(entries))  # noqa: B023
                for (_, then), counts in zip(group, won, strict=True):
                    then(counts)

    async def _write(self, entries: list[Entry]) -> list[bool]:
        started = time.perf_counter()
        won = await self._group.write(entries)
        self.commits.observe(time.perf_counter() - started)
        return won

    def _next_group(self) -> list[Ending]:
        """The next entries, each task once: a row cannot be changed twice by one statement."""
        group: dict[UUID, Ending] = {}
        later: list[Ending] = []
        for waiting in self._waiting:
            task_id = waiting[0].task_id
            if task_id in group or len(group) >= GROUP:
                later.append(waiting)
            else:
                group[task_id] = waiting
        self._waiting = later
        if later:
            self._wake.set()
        return list(group.values())

    def _note(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        connection.execute(self._insert(attempts).on_conflict_do_nothing(), rows)

    # -- taking a task over --------------------------------------------------------------------------------

    async def claim(
        self, task_id: UUID, life: str, agent_type: str, user_id: str, *, crashed: bool, dispatch: int = 0
    ) -> Claim:
        """Take the task over: a new fence, and what earlier runs have remembered.

        `dispatch` is the message's: with a higher one in the store, or a newer life, it is not the live one.

        `crashed` says that this delivery came back without having been released: unless the row says so, its
        worker died, and the start of this run is recorded as one that has not ended. So it is where the row
        says that somebody runs it, whatever the broker knows: a message that expired as its worker died comes
        by way of ageing, as a fresh one.
        """
        life, user_id = fitting(life, tasks.c.life), fitting(user_id, tasks.c.user_id)

        def act(connection: Connection) -> Claim:
            row = self._locked(connection, task_id)
            was_running = row is not None and row["status"] == RUNNING
            if row is None:
                first = {"life": life, "agent_type": agent_type, "user_id": user_id, "attempts": 0}
                row = self._first(connection, task_id, first)
            if row["life"] > life or (row["life"] == life and row["dispatch"] > dispatch):
                return Claim(row["fence"], row["crashes"], is_stale=True)
            if row["status"] in FINAL and row["life"] == life:
                if not row["agent_type"]:  # cancelled before anybody knew what it was
                    self._introduce(connection, task_id, agent_type, user_id)
                return Claim(row["fence"], row["crashes"], kept=row)
            return self._take(connection, row, life, dispatch, crashed=crashed or was_running)

        return await self.surely(act)

    def _introduce(self, connection: Connection, task_id: UUID, agent_type: str, user_id: str) -> None:
        connection.execute(
            tasks.update().where(tasks.c.task_id == task_id).values(agent_type=agent_type, user_id=user_id)
        )

    async def crashes(self, task_id: UUID) -> int:
        """How many runs of a task began and have not ended; nothing is recorded by asking."""

        def act(connection: Connection) -> int:
            query = select(tasks.c.crashes, tasks.c.status).where(tasks.c.task_id == task_id)
            row = connection.execute(query).one_or_none()
            return 0 if row is None else row.crashes + (row.status == RUNNING)

        return await self.surely(act)

    async def exonerate(self, task_id: UUID) -> None:
        """A run that was overtaken has ended after all: its worker did not die of it."""

        def act(connection: Connection) -> None:
            counted = (tasks.c.task_id == task_id) & (tasks.c.crashes > 0)
            connection.execute(tasks.update().where(counted).values(crashes=tasks.c.crashes - 1))

        await self.surely(act)

    def _locked(self, connection: Connection, task_id: UUID) -> dict[str, Any] | None:
        query = select(tasks).where(tasks.c.task_id == task_id).with_for_update()
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None else dict(row)

    def _first(self, connection: Connection, task_id: UUID, values: dict[str, Any]) -> dict[str, Any]:
        """Make the row that nobody has made yet; another may be doing the same right now."""
        new = {
            "task_id": task_id,
            "status": RUNNING,
            "fence": 0,
            "crashes": 0,
            "updated_at": time.time(),
            **values,
        }
        connection.execute(self._insert(tasks).values(new).on_conflict_do_nothing())
        row = self._locked(connection, task_id)
        assert row is not None
        return row

    def _take(
        self, connection: Connection, row: dict[str, Any], life: str, dispatch: int, *, crashed: bool
    ) -> Claim:
        begins_anew = row["life"] != life
        crashes = 0 if begins_anew or row["status"] == RELEASED else row["crashes"]
        crashed = crashed and row["status"] != RELEASED and not begins_anew
        fence = row["fence"] + 1
        connection.execute(
            tasks.update()
            .where(tasks.c.task_id == row["task_id"])
            .values(
                life=life,
                status=RUNNING,
                fence=fence,
                # Another life counts its own: with that of the last one its message would be stale.
                dispatch=dispatch,
                crashes=crashes + crashed,
                worker_id=self._worker_id,
                finished_at=None,
                due_at=None,
                leased_until=None,
                updated_at=time.time(),
            )
        )
        remembered = connection.execute(
            select(steps.c.name, steps.c.value).where(steps.c.task_id == row["task_id"])
        )
        known = {name: value for name, value in remembered}  # noqa: C416 - rows are no pairs to mypy
        return Claim(fence, crashes + crashed, known, row["checkpoint"])

    # -- while it runs ------------------------------------------------------------------------------------

    async def note_running(self, runs: Sequence[Entry]) -> None:
        """Write down that these run, those that have a row already left alone."""
        now = time.time()
        names = ("task_id", "life", "agent_type", "user_id", "fence", "worker_id")
        same = {"status": RUNNING, "crashes": 0, "attempts": 0, "updated_at": now}
        rows = [{name: getattr(run, name) for name in names} | same for run in runs]
        # In one order, so that two workers with copies of the same tasks do not wait for each other.
        rows.sort(key=itemgetter("task_id"))

        def act(connection: Connection) -> None:
            connection.execute(self._insert(tasks).on_conflict_do_nothing(), rows)

        await self.surely(act)

    async def sign_of_life(self, runs: Sequence[Entry]) -> None:
        """Note that these still run, though the broker has taken their messages back."""
        ours = (
            (tasks.c.task_id == bindparam("id"))
            & (tasks.c.life == bindparam("its_life"))
            & (tasks.c.fence == bindparam("its_fence"))
            & (tasks.c.worker_id == self._worker_id)
            & (tasks.c.status == RUNNING)
        )
        statement = tasks.update().where(ours).values(updated_at=bindparam("now"))
        now = time.time()
        rows = [
            {"id": run.task_id, "its_life": run.life, "its_fence": run.fence, "now": now}
            for run in sorted(runs, key=lambda run: run.task_id)
        ]

        def act(connection: Connection) -> None:
            connection.execute(statement, rows)

        await self.surely(act)

    async def running_elsewhere(self, task_id: UUID, life: str) -> float | None:
        """The last sign of life of the run that another worker has recorded, or None: nobody else runs it."""
        query = select(tasks.c.updated_at).where(
            tasks.c.task_id == task_id,
            tasks.c.life == fitting(life, tasks.c.life),
            tasks.c.status == RUNNING,
            tasks.c.worker_id != self._worker_id,
        )

        def act(connection: Connection) -> float | None:
            at: float | None = connection.execute(query).scalar_one_or_none()
            return at

        return await self.surely(act)

    async def remember(self, run: Entry, name: str, value: bytes) -> bytes:
        """Keep the value of a step, or the one that is kept already, and give it. Durable when it returns.

        Raises FenceLost for an overtaken run.
        """

        def act(connection: Connection) -> bytes:
            self.hold(connection, run)
            new = self._insert(steps).values(
                task_id=run.task_id, name=name, value=value, worker_id=self._worker_id, at=time.time()
            )
            if connection.execute(new.on_conflict_do_nothing()).rowcount:
                return value
            # An attempt that timed out just when it had written this: what it kept counts, as ever.
            query = select(steps.c.value).where(steps.c.task_id == run.task_id, steps.c.name == name)
            first: bytes = connection.execute(query).scalar_one()
            return first

        return await self.surely(act)

    async def checkpoint(self, run: Entry, state: bytes) -> None:
        """Keep the state of a run. Durable when it returns. Raises FenceLost for an overtaken run."""

        def act(connection: Connection) -> None:
            self.hold(connection, run)
            connection.execute(tasks.update().where(tasks.c.task_id == run.task_id).values(checkpoint=state))

        await self.surely(act)

    async def release(self, run: Entry) -> None:
        """Note that the task was given back to its queue, so that whoever gets it next is no suspect."""

        def act(connection: Connection) -> None:
            self.hold(connection, run)
            connection.execute(
                tasks.update().where(tasks.c.task_id == run.task_id).values(status=RELEASED, crashes=0)
            )

        await self.surely(act)

    def hold(self, connection: Connection, run: Entry) -> None:
        """Lock the run's row, or make it. Raises FenceLost unless the fence is still this run's."""
        row = self._locked(connection, run.task_id)
        if row is None:
            first = {"life": run.life, "agent_type": run.agent_type, "user_id": run.user_id, "attempts": 0}
            row = self._first(connection, run.task_id, first)
        if row["fence"] != run.fence or row["life"] != run.life or row["status"] in FINAL:
            raise FenceLost(
                f"task {run.task_id} was taken over (fence {row['fence']}, ours is {run.fence}): "
                "this run must stop"
            )
