"""The ledger: one row for each task that ended, was looked up, or stored a step or checkpoint.

A first run needs no row before it ends. Only a delivery that may be a second copy is looked up, and takes a
fence. Every write carries the fence of its run, and changes nothing if a newer fence exists.
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
    """A failed attempt of a task that will be retried. `failed_at` is in seconds since the epoch."""

    task_id: UUID
    life: str
    number: int
    failed_at: float
    error_type: str
    error_message: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The state of a task when a run takes it over.

    `kept` is the row of a task that has ended already: then there is nothing to run. `is_stale`: another
    message is the live one. `is_foreign`: the row belongs to another user or agent type. `crashes` counts
    runs that were recorded and never ended. `life` is the life of the run.
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
    """Reads and writes the ledger for one worker. Every operation waits while the store is away.

    `commits` measures the time to make a group of ends durable. `refused` counts rows and dead letters that
    the store refuses, and rows that cannot be published.
    """

    def __init__(self, store: Store, worker_id: str, on_change: Callable[[bool, str], None]) -> None:
        super().__init__(store, on_change)
        self._worker_id = worker_id
        self._group = Sqlite(store) if store.is_sqlite else Postgresql(store)
        self.commits = Histogram()
        self.refused = 0

    # -- what became of runs ------------------------------------------------------------------------------

    async def write(self, writes: Sequence[Write]) -> list[Verdict]:
        """Write what became of runs, each of a different task, in one commit. Durable when it returns.

        A write that the store refuses gets the verdict REFUSED and does not affect others. Raises
        StoreUnusable.
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
        """Record failed attempts for people to read. No decision depends on them."""
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
        """Take the task over: a new fence, and the steps and checkpoint of earlier runs.

        `dispatch` is the number in the message. If the store has a higher number or a newer life, the message
        is stale.

        `crashed` says that the delivery came back without having been released. Unless the row says released,
        its worker died, and a crash is counted. A crash is also counted if the row says running: a message
        that expired as its worker died comes back through ageing, and the broker calls it new.

        A `life` that the store does not know counts only if a replay can have begun it (`life_of`).
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
            _introduce(connection, row, agent_type, user_id)
            if row["status"] in FINAL and row["life"] == its_life:
                return replace(known, kept=row)
            return self._take(connection, row, its_life, dispatch, crashed=crashed or was_running)

        return await self.surely(act)

    async def begin(self, run: Entry) -> Claim:
        """Take a fence for a first run that is about to store a step or checkpoint.

        No message said that the task ran before. If the row says so, the task is not this run's: it has
        ended, or another run has it, whose own message recovers it after a crash. Then it raises FenceLost,
        and nothing is changed.
        """

        def act(connection: Connection) -> Claim:
            row = locked(connection, run.task_id) or first(connection, run.task_id, owner(run))
            if not is_free(row, run):
                raise lost(row, run)
            _introduce(connection, row, run.agent_type, run.user_id)
            return self._take(connection, row, run.life, 0, crashed=False)

        return await self.surely(act)

    async def confirm(self, run: Entry) -> None:
        """Check that the fence of a run is still the newest. Raises FenceLost if it is not."""
        await self.surely(lambda connection: hold(connection, run))

    async def crashes(self, task_id: UUID) -> int:
        """The number of runs of a task that were recorded and have not ended. It changes nothing."""

        def act(connection: Connection) -> int:
            query = select(tasks.c.crashes, tasks.c.status).where(tasks.c.task_id == task_id)
            row = connection.execute(query).one_or_none()
            return 0 if row is None else row.crashes + (row.status == RUNNING)

        return await self.surely(act)

    async def exonerate(self, run: Entry) -> None:
        """Take back one crash: an overtaken run has ended after all, so it did not kill its worker."""

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
                # A new life counts its own dispatches: with the old number its message would be stale.
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
        """Record that these tasks run. Existing rows are not changed."""
        now = time.time()
        names = ("task_id", "life", "agent_type", "user_id", "fence", "worker_id")
        same = {"status": RUNNING, "crashes": 0, "attempts": 0, "updated_at": now}
        rows = [{name: getattr(run, name) for name in names} | same for run in runs]
        # Sorted, so that two workers with copies of the same tasks cannot deadlock.
        rows.sort(key=itemgetter("task_id"))

        async def write(some: Sequence[dict[str, Any]]) -> Sequence[None]:
            def act(connection: Connection) -> None:
                connection.execute(insert_into(connection, tasks).on_conflict_do_nothing(), some)

            await self.surely(act)
            return [None] * len(some)

        await apart(rows, write, self._refuse_row)

    async def sign_of_life(self, runs: Sequence[Entry]) -> None:
        """Record that these tasks still run, although the broker has taken their messages back."""
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
        """The last sign of life of another worker's run, in seconds since the epoch; None without one."""
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
        """Store the value of a step, unless it has one. Returns the stored value, durable.

        Raises FenceLost for an overtaken run.
        """

        def act(connection: Connection) -> bytes:
            hold(connection, run)
            new = insert_into(connection, steps).values(
                task_id=run.task_id, name=name, value=value, worker_id=self._worker_id, at=time.time()
            )
            if connection.execute(new.on_conflict_do_nothing()).rowcount:
                return value
            # An earlier attempt stored this step and then timed out. The first stored value counts.
            query = select(steps.c.value).where(steps.c.task_id == run.task_id, steps.c.name == name)
            first: bytes = connection.execute(query).scalar_one()
            return first

        return await self.surely(act)

    async def checkpoint(self, run: Entry, state: bytes) -> None:
        """Store the state of a run, durable when it returns. Raises FenceLost for an overtaken run."""

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


def _introduce(connection: Connection, row: dict[str, Any], agent_type: str, user_id: str) -> None:
    """Name the owner of a row that has none, because its task was cancelled before its message was read.

    The end of a run is written only to a row of its owner: without one, every run would count as overtaken.
    """
    if not row["agent_type"]:
        its = tasks.c.task_id == row["task_id"]
        connection.execute(tasks.update().where(its).values(agent_type=agent_type, user_id=user_id))
