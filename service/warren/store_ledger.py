"""The ledger: one row for each task that ended, was looked up, or remembered something.

A first run leaves no row until it ends: only a delivery that may be a second copy pays for a look-up, and
takes a fence. Every write carries the fence of its run and changes nothing when a newer one was taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Final, TypeAlias
from uuid import UUID

import structlog
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from warren.errors import FenceLost, StoreRefused
from warren.histogram import Histogram
from warren.store import Store
from warren.store_columns import counted
from warren.store_finish import Entry, Postgresql, Sqlite, Verdict
from warren.store_lives import is_foreign, life_of
from warren.store_patience import PatientStore, apart
from warren.store_schema import CANCELLED, FINAL, RELEASED, RUNNING, attempts, fitting, steps, tasks

__all__ = ["Claim", "Entry", "Ledger", "Verdict"]

log = structlog.get_logger(__name__)

GROUP: Final = 500  # rows in one commit at most

Ending: TypeAlias = tuple[Entry, Callable[[Verdict], None]]
"""The end of a run, and who is told what became of it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a task when a run takes it over.

    `kept` is the row of one that has ended already: then there is nothing to run. `is_stale`: another message
    is the live one. `is_foreign`: the row of this id is another user's, or of another agent type. `crashes`
    counts runs that began, were recorded and never ended. `life` is the one that the run is of.
    """

    fence: int
    crashes: int
    life: str = ""
    steps: dict[str, bytes] = field(default_factory=dict)
    checkpoint: bytes | None = None
    kept: dict[str, Any] | None = None
    is_stale: bool = False
    is_foreign: bool = False


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

        False: a newer run has taken the task over, and this one's end changed nothing. Raises StoreRefused
        for an end that the store does not take.
        """
        written: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

        def settle(verdict: Verdict) -> None:
            if not written.done():
                written.set_result(verdict)

        self.finish_then(entry, settle)
        verdict = await written
        if verdict is Verdict.REFUSED:
            raise StoreRefused(f"the store does not take the end of task {entry.task_id}: its log says why")
        return verdict is Verdict.COUNTS

    def finish_then(self, entry: Entry, then: Callable[[Verdict], None]) -> None:
        """The same without waiting: `then(verdict)` is called when it is durable, or has changed nothing.

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
            "number": number,
            "worker_id": self._worker_id,
            "failed_at": time.time(),
            "error_type": error_type,
            "error_message": error_message,
        }
        self._attempts.append(row)
        self._wake.set()

    async def run(self) -> None:
        """Write what has come together, for ever: one commit at a time, while the next group gathers."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._attempts:
                noted, self._attempts = self._attempts, []
                await apart(noted, self._note, _refused_note)
            group = self._next_group()
            if group:
                verdicts = await apart([entry for entry, _ in group], self._write, _refused_end)
                for (_, then), verdict in zip(group, verdicts, strict=True):
                    then(verdict)

    async def _write(self, entries: Sequence[Entry]) -> list[Verdict]:
        started = time.perf_counter()
        won = await self._patiently(lambda: self._group.write(entries))
        self.commits.observe(time.perf_counter() - started)
        return [Verdict.COUNTS if counts else Verdict.OVERTAKEN for counts in won]

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

    async def _note(self, rows: Sequence[dict[str, Any]]) -> Sequence[None]:
        def act(connection: Connection) -> None:
            connection.execute(self._insert(attempts).on_conflict_do_nothing(), rows)

        await self.surely(act)
        return [None] * len(rows)

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

        A `life` that the store does not know counts only where a replay may have begun it (`life_of`).
        """
        user_id = fitting(user_id, tasks.c.user_id)

        def act(connection: Connection) -> Claim:
            row = self._locked(connection, task_id)
            was_running = row is not None and row["status"] == RUNNING
            if row is None:
                first = {"agent_type": agent_type, "user_id": user_id, "dispatch": dispatch}
                row = self._first(connection, task_id, first)
            known = Claim(row["fence"], row["crashes"], row["life"])
            if is_foreign(row["agent_type"], row["user_id"], agent_type, user_id):
                return replace(known, is_foreign=True)
            its_life = life_of(life, row["life"], row["status"])
            if row["life"] > its_life or (row["life"] == its_life and row["dispatch"] > dispatch):
                return replace(known, is_stale=True)
            if row["status"] in FINAL and row["life"] == its_life:
                if not row["agent_type"]:  # cancelled before anybody knew what it was
                    self._introduce(connection, task_id, agent_type, user_id)
                return replace(known, kept=row)
            return self._take(connection, row, its_life, dispatch, crashed=crashed or was_running)

        return await self.surely(act)

    async def begin(self, run: Entry) -> Claim:
        """Take a fence for a first run that is about to remember something.

        No message said that anybody ran the task before. If the row does, the task is not this run's: it has
        ended, or it is another's, whose own message sees to it should that one have died. Raises FenceLost
        then, and nothing is changed.
        """

        def act(connection: Connection) -> Claim:
            row = self._locked(connection, run.task_id) or self._first(connection, run.task_id, _owner(run))
            if not _is_free(row, run):
                raise _lost(row, run)
            return self._take(connection, row, run.life, 0, crashed=False)

        return await self.surely(act)

    async def confirm(self, run: Entry) -> None:
        """Ask whether the fence of a run is still the newest. Raises FenceLost for an overtaken one."""
        await self.surely(lambda connection: self.hold(connection, run))

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
            "life": "",
            "attempts": 0,
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
        fence, crashes = counted(row["fence"] + 1), counted(crashes + crashed)
        connection.execute(
            tasks.update()
            .where(tasks.c.task_id == row["task_id"])
            .values(
                life=life,
                status=RUNNING,
                fence=fence,
                # Another life counts its own: with that of the last one its message would be stale.
                dispatch=dispatch if begins_anew else row["dispatch"],
                crashes=crashes,
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
        return Claim(fence, crashes, life, known, row["checkpoint"])

    # -- while it runs ------------------------------------------------------------------------------------

    async def note_running(self, runs: Sequence[Entry]) -> None:
        """Write down that these run, those that have a row already left alone."""
        now = time.time()
        names = ("task_id", "life", "agent_type", "user_id", "fence", "worker_id")
        same = {"status": RUNNING, "crashes": 0, "attempts": 0, "updated_at": now}
        rows = [{name: getattr(run, name) for name in names} | same for run in runs]
        # In one order, so that two workers with copies of the same tasks do not wait for each other.
        rows.sort(key=itemgetter("task_id"))

        async def write(some: Sequence[dict[str, Any]]) -> Sequence[None]:
            def act(connection: Connection) -> None:
                connection.execute(self._insert(tasks).on_conflict_do_nothing(), some)

            await self.surely(act)
            return [None] * len(some)

        await apart(rows, write, _refused_note)

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

    async def cancel(self, run: Entry) -> bool:
        """Write down that the run was cancelled, under its fence: a message may be all that has said so.

        False: the task is not this run's any more. Durable when it returns.
        """

        def act(connection: Connection) -> bool:
            row = self._locked(connection, run.task_id)
            if row is not None and row["status"] == CANCELLED:
                return not is_foreign(row["agent_type"], row["user_id"], run.agent_type, run.user_id)
            try:
                self.hold(connection, run)
            except FenceLost:
                return False
            now = time.time()
            connection.execute(
                tasks.update()
                .where(tasks.c.task_id == run.task_id)
                .values(
                    status=CANCELLED,
                    crashes=0,
                    worker_id=run.worker_id,
                    due_at=None,
                    leased_until=None,
                    finished_at=now,
                    updated_at=now,
                )
            )
            return True

        return await self.surely(act)

    def hold(self, connection: Connection, run: Entry) -> None:
        """Lock the run's row, or make it. Raises FenceLost unless the fence is still this run's."""
        row = self._locked(connection, run.task_id) or self._first(connection, run.task_id, _owner(run))
        if row["fence"] != run.fence or not _is_of_its_task(row, run):
            raise _lost(row, run)


def _owner(run: Entry) -> dict[str, Any]:
    """What a first row says of the run that makes it."""
    return {name: getattr(run, name) for name in ("life", "agent_type", "user_id", "worker_id")}


def _is_of_its_task(row: dict[str, Any], run: Entry) -> bool:
    """Whether the row is of the life that the run is of, and that has not ended."""
    return (
        row["life"] == run.life
        and row["status"] not in FINAL
        and not is_foreign(row["agent_type"], row["user_id"], run.agent_type, run.user_id)
    )


def _is_free(row: dict[str, Any], run: Entry) -> bool:
    """Whether a first run may take the row: no other run is at it, and no later message is under way."""
    is_its_own = row["worker_id"] == run.worker_id and row["fence"] == run.fence
    return _is_of_its_task(row, run) and row["dispatch"] == 0 and (row["status"] != RUNNING or is_its_own)


def _lost(row: dict[str, Any], run: Entry) -> FenceLost:
    return FenceLost(
        f"task {run.task_id} was taken over or has ended (status {row['status']}, fence {row['fence']}; "
        f"ours is {run.fence}): this run must stop"
    )


def _refused_end(entry: Entry, error: Exception) -> Verdict:
    log.error("ledger.refused", task_id=str(entry.task_id), status=entry.status, error=str(error))
    return Verdict.REFUSED


def _refused_note(row: dict[str, Any], error: Exception) -> None:
    log.error("ledger.refused", task_id=str(row["task_id"]), error=str(error))
