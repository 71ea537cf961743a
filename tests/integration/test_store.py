"""The store's conformance suite: the same cases on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, select

from tests.stores import Cluster, execute, finish, new_database, write
from warren.agents.steps import Memory
from warren.errors import FenceLost, StoreUnavailable
from warren.store.commit_group import Sqlite
from warren.store.database import Store
from warren.store.drivers import transaction
from warren.store.ledger import Entry, FailedAttempt, Ledger, Verdict
from warren.store.run_writes import GivenBack, Postponed
from warren.store.schema import metadata, steps, tasks
from warren.store.stored_message import Parcel
from warren.store.task_records import Archive
from warren.worker.committer import GROUP


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Callable[[], Cluster]) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return await new_database(postgresql().url)


@asynccontextmanager
async def ledger_of(url: str, worker_id: str = "worker-1") -> AsyncIterator[Ledger]:
    """A ledger that writes."""
    async with Store(url, migrate=True) as store:
        ledger = Ledger(store, worker_id, lambda _up, _reason: None)
        yield ledger


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """A ledger in an empty database."""
    async with ledger_of(url) as ledger:
        yield ledger


def entry(task_id: UUID | None = None, **changes: object) -> Entry:
    """The end of a run."""
    plain = Entry(task_id or uuid4(), "", "greet", "default", "succeeded", 0, 1, "worker-1", b'"Hello"')
    return replace(plain, **changes)  # type: ignore[arg-type]


async def test_a_task_ends_once(ledger: Ledger) -> None:
    run = entry()
    assert await finish(ledger, run)
    assert not await finish(ledger, replace(run, result=b'"Bye"'))
    kept = (await ledger.claim(run.task_id, "", "greet", "default", crashed=True)).kept
    assert kept is not None
    assert (kept["status"], kept["result"]) == ("succeeded", b'"Hello"')


async def test_of_many_that_end_together_each_ends_once(ledger: Ledger) -> None:
    runs = [entry() for _ in range(1200)]
    won = await asyncio.gather(*(finish(ledger, run) for run in [*runs, *runs]))
    assert sum(won) == len(runs)


async def test_whoever_lost_the_fence_changes_nothing(ledger: Ledger) -> None:
    late = entry(result=b'"late"')
    taken = await ledger.claim(late.task_id, "", "greet", "default", crashed=False)
    newest = replace(late, fence=taken.fence, result=b'"newest"')
    for act in (ledger.remember(late, "a", b"1"), ledger.checkpoint(late, b"1")):
        with pytest.raises(FenceLost, match="taken over"):
            await act
    assert not await write(ledger, GivenBack(late))
    assert not await finish(ledger, late)
    assert await finish(ledger, newest)


async def test_winners_and_losers_in_one_group(ledger: Ledger) -> None:
    """All of these are written by one commit: what one of them loses changes nothing for the others."""
    ended, overtaken = entry(), entry(status="dead", result=None, reason="exhausted")
    assert await finish(ledger, ended)
    taken = await ledger.claim(overtaken.task_id, "", "greet", "default", crashed=False)
    group = [
        entry(),
        replace(ended, result=b'"Bye"'),
        entry(status="dead", result=None, reason="exhausted", error_type="ValueError"),
        overtaken,
        replace(entry(), fence=0, life="0199"),
        replace(ended, life="0199", status="dead", result=None, reason="rejected"),
    ]
    won = await ledger.write(group[:5])
    assert [verdict is Verdict.COUNTS for verdict in won] == [True, False, True, False, True]
    assert await finish(ledger, group[5])
    assert await finish(ledger, replace(overtaken, fence=taken.fence))
    kept = [
        (await ledger.claim(one.task_id, one.life, "greet", "default", crashed=True)).kept for one in group
    ]
    assert [row and row["status"] for row in kept] == [
        "succeeded",
        None,  # of an older life than the row's: nobody's business any more
        "dead",
        "dead",
        "succeeded",
        "dead",
    ]
    assert [row and row["result"] for row in kept][:2] == [b'"Hello"', None]


async def test_an_sqlite_that_takes_few_values_in_a_statement_gets_row_by_row(tmp_path: Path) -> None:
    async with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        await store.run_bare(lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 50))
        group = [entry() for _ in range(20)]
        assert await Sqlite(store).write(group) == [True] * 20
        assert await Sqlite(store).write([*group[:7], entry()]) == [False] * 7 + [True]
        assert len(await execute(store, select(tasks))) == 21


async def test_a_whole_group_fits_one_commit(ledger: Ledger) -> None:
    dead = entry(status="dead", result=None, reason="exhausted", error_type="ValueError")
    for last, counts in ((entry(), True), (dead, True), (dead, False)):  # at last one that has ended already
        group = [*(entry() for _ in range(GROUP - 1)), last]
        won = await ledger.write(group)
        assert [verdict is Verdict.COUNTS for verdict in won] == [*[True] * (GROUP - 1), counts]


async def test_a_good_end_leaves_nothing_of_an_earlier_failure(ledger: Ledger) -> None:
    failed = entry(status="dead", result=None, reason="exhausted", error_type="ValueError", traceback="…")
    assert await finish(ledger, failed)
    claim = await ledger.claim(failed.task_id, "0199", "greet", "default", crashed=False)
    again = entry(failed.task_id, life="0199", fence=claim.fence)
    assert await finish(ledger, again)
    row = (await ledger.claim(failed.task_id, "0199", "greet", "default", crashed=True)).kept
    assert row is not None
    assert (row["status"], row["reason"], row["error_type"], row["traceback"]) == ("succeeded", *[None] * 3)


async def test_an_end_leaves_what_is_needed_to_publish_the_task(url: str) -> None:
    kept = {
        "body": b"{}",
        "headers": b"{}",
        "priority": 6,
        "reply_to": "answers",
        "correlation_id": "7",
        "idempotency_key": "once",
        "created_at": 1.0,
        "dispatch": 3,
        "checkpoint": b"[1]",
        "former_fingerprint": "abc",
    }
    runs = [entry(), entry(status="dead", result=None, user_id="other")]
    async with ledger_of(url) as ledger, Store(url) as store:
        for run in runs:
            await ledger.checkpoint(run, b"[1]")
            waits = kept | {"due_at": 2.0, "leased_until": 3.0, "idempotency_key": run.status}
            await execute(store, tasks.update().where(tasks.c.task_id == run.task_id).values(**waits))
        assert await asyncio.gather(*(finish(ledger, one) for one in runs)) == [True, True]
        for run in runs:
            [row] = await execute(store, select(tasks).where(tasks.c.task_id == run.task_id))
            assert {name: row[name] for name in kept} == kept | {"idempotency_key": run.status}
            assert (row["due_at"], row["leased_until"], row["status"]) == (None, None, run.status)


@pytest.mark.parametrize("text", ["a\0b", "x" * 300, "\ud800", "ü\0" * 200])
async def test_text_of_any_kind_can_be_written(ledger: Ledger, text: str) -> None:
    run = entry(status="dead", result=None, error_type=text, error_message=text, traceback=text)
    await ledger.note_attempts([FailedAttempt(run.task_id, run.life, 2**40, 1.0, text, text)])
    assert await finish(ledger, run)
    claim = await ledger.claim(run.task_id, text, "greet", text, crashed=False)
    assert claim.kept is None


async def test_steps_and_checkpoint_survive_their_run(ledger: Ledger) -> None:
    run = entry()
    await ledger.remember(run, "fetch", b"[1,2]")
    await ledger.checkpoint(run, b'{"page":7}')
    known = await ledger.claim(run.task_id, "", "greet", "default", crashed=True)
    assert (known.steps, known.checkpoint) == ({"fetch": b"[1,2]"}, b'{"page":7}')


async def test_of_two_values_of_a_step_the_first_is_kept_and_given(ledger: Ledger) -> None:
    run = entry()
    assert await ledger.remember(run, "fetch", b"1") == b"1"
    assert await ledger.remember(run, "fetch", b"2") == b"1"


async def test_a_step_whose_attempt_is_cancelled_as_it_is_written_is_not_run_again(tmp_path: Path) -> None:
    url, task_id = f"sqlite:///{tmp_path / 'store.db'}", uuid4()
    ran, locked, let_go = asyncio.Event(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def lock(_: Connection) -> None:
        loop.call_soon_threadsafe(locked.set)
        assert let_go.wait(30)

    def step() -> int:
        assert not ran.is_set()
        ran.set()
        return 7

    async with ledger_of(url) as ledger, Store(url) as other:
        memory = Memory(ledger, entry(task_id), 1000)
        await memory.checkpoint(None)  # it has its fence
        locking = asyncio.create_task(other.run(lock))
        await locked.wait()
        attempt = asyncio.create_task(memory.step("fetch", step))
        await ran.wait()
        attempt.cancel()
        assert isinstance((await asyncio.gather(attempt, return_exceptions=True))[0], asyncio.CancelledError)
        memory.begin_attempt()
        again = asyncio.create_task(memory.step("fetch", step))
        let_go.set()
        assert await again == 7
        await locking


async def test_runs_that_never_ended_are_counted_until_one_ends_or_is_released(ledger: Ledger) -> None:
    run = entry()
    crashes = [(await ledger.claim(run.task_id, "", "greet", "default", crashed=True)) for _ in range(2)]
    assert [one.crashes for one in crashes] == [1, 2]
    assert await write(ledger, GivenBack(replace(run, fence=crashes[-1].fence)))
    assert (await ledger.claim(run.task_id, "", "greet", "default", crashed=True)).crashes == 0


async def test_a_replay_is_a_new_life_with_the_old_steps(ledger: Ledger) -> None:
    run = entry(status="dead")
    await ledger.remember(run, "fetch", b"1")
    assert await finish(ledger, run)
    again = await ledger.claim(run.task_id, "0199", "greet", "default", crashed=False)
    assert again.kept is None
    assert again.steps == {"fetch": b"1"}
    assert await finish(ledger, replace(run, life="0199", fence=again.fence, status="succeeded"))
    stale = await ledger.claim(run.task_id, "", "greet", "default", crashed=True)
    assert stale.is_stale


async def test_another_life_does_not_go_by_the_dispatches_of_the_last(ledger: Ledger) -> None:
    run = entry()
    assert await write(ledger, Postponed(run, 0, 1, Parcel(b"{}", b"{}", 4), None))
    dead = {"status": "dead", "finished_at": 1.0}
    await execute(ledger.store, tasks.update().where(tasks.c.task_id == run.task_id).values(**dead))
    for crashed in (False, True):
        again = await ledger.claim(run.task_id, "0199", "greet", "default", crashed=crashed)
        assert not again.is_stale


async def test_two_that_claim_at_once_get_two_fences(url: str) -> None:
    run = entry()
    async with ledger_of(url, "one") as one, ledger_of(url, "two") as two:
        claims = await asyncio.gather(
            *(ledger.claim(run.task_id, "", "greet", "default", crashed=False) for ledger in (one, two) * 5)
        )
    assert sorted(claim.fence for claim in claims) == list(range(1, 11))


async def test_a_trip_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def bare(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("INSERT INTO steps VALUES ('1', 'a', x'00', 'worker-1', 0)")
            connection.execute("INSERT INTO nowhere VALUES (1)")

    def act(connection: Connection) -> None:
        connection.execute(steps.insert().values(task_id=uuid4(), name="a", value=b"", worker_id="w", at=0))
        connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    async with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        for trip in (store.run_bare(bare), store.run(act)):
            with pytest.raises(StoreUnavailable, match="no such table: nowhere"):
                await trip
        assert await execute(store, select(steps)) == []


async def test_migrating_twice_changes_nothing(url: str) -> None:
    for _ in range(2):
        async with Store(url, migrate=True):
            pass


async def test_the_archive_tells_everything_about_a_task(url: str) -> None:
    run = entry(status="dead", result=None, attempts=2, reason="exhausted", error_type="ValueError")
    async with ledger_of(url) as ledger, Store(url) as store:
        archive = Archive(store)
        assert await archive.task(run.task_id) is None
        await ledger.note_attempts([FailedAttempt(run.task_id, run.life, 1, 1.0, "OSError", "not yet")])
        await ledger.remember(run, "fetch", b"[1]")
        await ledger.checkpoint(run, b'{"page": 2}')
        assert await archive.status(run.task_id) == "running"
        await finish(ledger, run)
        record = await archive.task(run.task_id)
    assert record is not None
    assert (record.status, record.reason, record.checkpoint) == ("dead", "exhausted", {"page": 2})
    assert [(one.number, one.error_message) for one in record.failed_attempts] == [(1, "not yet")]
    assert [(one.name, one.value) for one in record.steps] == [("fetch", [1])]


async def test_the_archive_counts_what_one_worker_ended(url: str) -> None:
    async with ledger_of(url) as ledger, Store(url) as store:
        ended = [entry(), entry(), entry(status="dead", result=None), entry(worker_id="worker-2")]
        await asyncio.gather(*(finish(ledger, one) for one in ended))
        await ledger.remember(entry(), "fetch", b"[1]")  # runs, or died
        counted = await Archive(store).ended_by("worker-1")
    assert counted == {("greet", "succeeded"): 2, ("greet", "dead"): 1}


async def test_pruning_deletes_what_ended_and_nothing_else(url: str) -> None:
    done, open_run = entry(), entry()
    async with ledger_of(url) as ledger, Store(url) as store:
        await finish(ledger, done)
        await ledger.checkpoint(open_run, b"1")
        archive = Archive(store)
        assert await archive.prune(older_than=60) == 0
        assert await archive.prune(older_than=-1) == 1
        assert await archive.status(done.task_id) is None
        assert await archive.status(open_run.task_id) == "running"


async def test_the_migrations_make_the_tables_that_the_code_expects(url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with Store(url, migrate=True) as store:
        assert await store.run(differences) == []
