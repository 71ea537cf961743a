"""The ledger: one row for each task that ended, was looked up, or remembered something.

A first run leaves no row until it ends: only a delivery that may be a second copy pays for a look-up, and
takes a fence. Every write carries the fence of its run and changes nothing when a newer one was taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, bindparam, select

from warren.store.columns import counted
from warren.store.commit_group import Entry, Postgresql, Sqlite, Verdict
from warren.store.database import Store
from warren.store.fence import first, hold, is_free, locked, lost, owner
from warren.store.lives import is_foreign, life_of
from warren.store.patience import PatientStore, apart
from warren.store.run_writes import Write, run_of, write_one
from warren.store.schema import FINAL, RELEASED, RUNNING, attempts, fitting, steps, tasks
from warren.store.upsert import insert_into
from warren.support.histogram import Histogram

__all__ = ["Claim", "Entry", "Ledger", "Verdict"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that failed and is to be made again. `failed_at` is in seconds since the epoch."""

    task_id: UUID
    life: str
    number: int
    failed_at: float
    error_type: str
    error_message: str


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

    `commits` takes how long the groups of ends took to be durable. `refused` counts what was set aside: rows
    and dead letters that the store does not take, and rows that cannot be published.
    """

    def __init__(self, store: Store, worker_id: str, on_change: Callable[[bool, str], None]) -> None:
        super().__init__(store, on_change)
        self._worker_id = worker_id
        self._group = Sqlite(store) if store.is_sqlite else Postgresql(store)
        self.commits = Histogram()
        self.refused = 0

    # -- what became of runs ------------------------------------------------------------------------------

    async def write(self, writes: Sequence[Write]) -> list[Verdict]:
        """Write what became of runs, each of another task, in one commit: durable when it returns.

        One that the store refuses is told apart, and holds up no other. Raises StoreUnusable.
        """
        return await apart(writes, self._write, self._refuse)

    async def _write(self, writes: Sequence[Write]) -> list[Verdict]:
        started = time.perf_counter()
        ends = [write for write in writes if isinstance(write, Entry)]
        if len(ends) == len(writes):
            won = await self._patiently(lambda: self._group.write(ends))
            verdicts = [Verdict.of(counts) for counts in won]
        else:
            verdicts = await self.surely(lambda connection: self._write_all(connection, writes, ends))
        self.commits.observe(time.perf_counter() - started)
        return verdicts

    def _write_all(
        self, connection: Connection, writes: Sequence[Write], ends: Sequence[Entry]
    ) -> list[Verdict]:
        verdicts: dict[UUID, Verdict] = {}
        if ends:
            won = self._group.write_within(connection, ends)
            verdicts = {end.task_id: Verdict.of(counts) for end, counts in zip(ends, won, strict=True)}
        for write in writes:
            if not isinstance(write, Entry):
                verdicts[write.run.task_id] = write_one(connection, write)
        return [verdicts[run_of(write).task_id] for write in writes]

    async def note_attempts(self, failed: Sequence[FailedAttempt]) -> None:
        """Write down failed attempts, to be looked at: nothing depends on it."""
        rows = [asdict(attempt) | {"worker_id": self._worker_id} for attempt in failed]
        await apart(rows, self._note, self._refuse_row)

    async def _note(self, rows: Sequence[dict[str, Any]]) -> Sequence[None]:
        def act(connection: Connection) -> None:
            connection.execute(insert_into(connection, attempts).on_conflict_do_nothing(), rows)

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
            row = locked(connection, task_id)
            was_running = row is not None and row["status"] == RUNNING
            if row is None:
                own = {"agent_type": agent_type, "user_id": user_id, "dispatch": dispatch}
                row = first(connection, task_id, own)
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
            row = locked(connection, run.task_id) or first(connection, run.task_id, owner(run))
            if not is_free(row, run):
                raise lost(row, run)
            return self._take(connection, row, run.life, 0, crashed=False)

        return await self.surely(act)

    async def confirm(self, run: Entry) -> None:
        """Ask whether the fence of a run is still the newest. Raises FenceLost for an overtaken one."""
        await self.surely(lambda connection: hold(connection, run))

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

    async def exonerate(self, run: Entry) -> None:
        """A run that was overtaken has ended after all: its worker did not die of it."""

        def act(connection: Connection) -> None:
            its = (tasks.c.task_id == run.task_id) & (tasks.c.life == run.life) & (tasks.c.crashes > 0)
            owned = (tasks.c.agent_type == run.agent_type) & (tasks.c.user_id == run.user_id)
            connection.execute(tasks.update().where(its, owned).values(crashes=tasks.c.crashes - 1))

        await self.surely(act)

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
                connection.execute(insert_into(connection, tasks).on_conflict_do_nothing(), some)

            await self.surely(act)
            return [None] * len(some)

        await apart(rows, write, self._refuse_row)

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
            hold(connection, run)
            new = insert_into(connection, steps).values(
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
            hold(connection, run)
            connection.execute(tasks.update().where(tasks.c.task_id == run.task_id).values(checkpoint=state))

        await self.surely(act)

    def _refuse(self, write: Write, error: Exception) -> Verdict:
        run = run_of(write)
        log.error("ledger.refused", task_id=str(run.task_id), write=type(write).__name__, error=str(error))
        self.refused += 1
        return Verdict.REFUSED

    def _refuse_row(self, row: dict[str, Any], error: Exception) -> None:
        log.error("ledger.refused", task_id=str(row["task_id"]), error=str(error))
        self.refused += 1
