"""Tasks that have ended and wait for the commit of their group, while no handler waits for them."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.rig import Rig, eventually, publish, task_body
from warren import Warren
from warren.store import drivers as store_databases
from warren.store.database import Store
from warren.store.task_records import Archive
from warren.worker import worker as worker_module
from warren.worker.worker import Worker
from warren_schemas import REPUBLISHED

OVERTAKEN = """
    INSERT INTO tasks (task_id, life, agent_type, user_id, status, fence, crashes, attempts, result,
                       finished_at, updated_at)
    VALUES (?, '', 'count', 'default', 'succeeded', 1, 0, 1, CAST('"another"' AS BLOB), 1, 1)
"""


@pytest.fixture
def runs() -> Counter[int]:
    """How often each payload was run."""
    return Counter()


@pytest.fixture
def app(runs: Counter[int]) -> Warren:
    """One agent, which counts."""
    app = Warren()

    @app.agent("count")
    async def count(number: int) -> str:
        runs[number] += 1
        return "ours"

    return app


@contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Nobody else may write while this lasts; what is written here is committed at its end."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


def committing(worker: Worker) -> int:
    """How many tasks wait for their commit."""
    return len(worker._committer._waiting) + len(worker._committer._writing)


async def test_a_second_copy_waits_for_the_commit_and_is_not_run(
    rig: Rig, app: Warren, runs: Counter[int], tmp_path: Path
) -> None:
    file = tmp_path / "store.db"
    async with rig.worker(app, store_url=f"sqlite:///{file}") as worker, rig.plain() as channel:
        task = task_body("count", 1)
        with locked(file):
            await publish(channel, rig.names.tasks, "count", task)
            await eventually(lambda: committing(worker) == 1, "it waits for its commit")
            await publish(channel, rig.names.tasks, "count", task, headers={REPUBLISHED: True})
            await eventually(lambda: worker.totals.delivered == 2, "the copy is here")
            assert worker.totals.succeeded == 0
            assert await rig.depth(rig.names.queue("count")) == 0
        await eventually(lambda: worker.totals.adopted == 1, "the copy is settled")
        assert (worker.totals.succeeded, worker.running, runs) == (1, 0, {1: 1})
    assert await rig.depth(rig.names.queue("count")) == 0


async def test_a_run_that_was_overtaken_before_its_commit_steps_back(
    rig: Rig, app: Warren, tmp_path: Path
) -> None:
    file = tmp_path / "store.db"
    async with rig.worker(app, store_url=f"sqlite:///{file}") as worker, rig.plain() as channel:
        task, other = task_body("count", 1), task_body("count", 2)
        with locked(file) as connection:
            for one in (task, other):
                await publish(channel, rig.names.tasks, "count", one)
            await eventually(lambda: committing(worker) == 2, "they wait for their commit")
            connection.execute(OVERTAKEN, (UUID(task["task_id"]).hex,))
        await eventually(lambda: worker.totals.adopted == 1, "it came back, and its end was found")
        totals = worker.totals
        assert (totals.superseded, totals.succeeded, worker.running) == (1, 1, 0)
    async with Store(f"sqlite:///{file}") as store:
        ends = [await Archive(store).task(UUID(one["task_id"])) for one in (task, other)]
    assert [end and end.result for end in ends] == ["another", "ours"]
    assert await rig.depth(rig.names.queue("count")) == 0


async def test_a_drain_waits_for_the_commit(rig: Rig, app: Warren, tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with rig.worker(app, store_url=f"sqlite:///{file}") as worker, rig.plain() as channel:
        with locked(file):
            await publish(channel, rig.names.tasks, "count", task_body("count", 1))
            await eventually(lambda: committing(worker) == 1, "it waits for its commit")
            worker.stop()
            await eventually(lambda: not worker.lanes["count"].consumer.is_consuming, "it drains")
            assert committing(worker) == 1
    assert worker.totals.succeeded == 1
    assert await rig.depth(rig.names.queue("count")) == 0


async def test_what_is_not_committed_when_its_worker_ends_is_delivered_again(
    rig: Rig, app: Warren, runs: Counter[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_databases, "BUSY_TIMEOUT", 100)
    monkeypatch.setattr(worker_module, "LAST_WORDS", 0.2)
    file = tmp_path / "store.db"
    settings: dict[str, Any] = {"store_url": f"sqlite:///{file}", "drain_timeout": 0.2}
    with ExitStack() as lock:
        async with rig.worker(app, **settings) as worker, rig.plain() as channel:
            lock.enter_context(locked(file))
            await publish(channel, rig.names.tasks, "count", task_body("count", 1))
            await eventually(lambda: committing(worker) == 1, "it waits for its commit")
        assert (worker.totals.succeeded, committing(worker)) == (0, 1)
    async with rig.worker(app, **settings) as heir:
        await eventually(lambda: heir.totals.succeeded == 1, "it was run again")
        assert (heir.totals.redelivered, runs) == (1, {1: 2})
