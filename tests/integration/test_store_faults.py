"""A store that cannot be used, comes and goes, or is somebody else's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from tests.integration.test_store import entry
from tests.rig import Rig, eventually
from tests.stores import Cluster, execute, finish, locked, new_database
from tests.toolbox import logged
from warren import Context, Warren
from warren.client.client import make_task
from warren.errors import ConfigurationError, StoreBusy, StoreUnavailable, StoreUnusable
from warren.store import drivers as store_databases
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.schema import tasks

TASKS = 40


async def _open(url: str) -> None:
    async with Store(url):
        pass


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    file.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StoreUnusable, match=r"damaged.*Move the file away"):
        await _open(f"sqlite:///{file}")


async def test_a_schema_of_a_newer_warren(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    await _open(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreUnusable, match=r"9999.*newer Warren"):
        await _open(f"sqlite:///{file}")


async def test_postgresql_that_was_never_migrated(postgresql: Callable[[], Cluster]) -> None:
    with pytest.raises(StoreUnusable, match="warren store migrate"):
        await _open(await new_database(postgresql().url))


async def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1/") as caught:
        await _open("postgresql://warren:secret@127.0.0.1:1/warren")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://localhost/warren", "foo", "sqlite"])
async def test_a_database_of_a_kind_that_we_do_not_know(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"WARREN_STORE_URL.*neither sqlite.*nor postgresql"):
        Store(url)


async def test_a_server_that_hangs_is_one_that_is_away(
    postgresql: Callable[[], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_databases, "COMMAND_TIMEOUT", 0.3)
    url = await new_database(postgresql().url)
    async with Store(url, migrate=True) as store:
        async with locked(url, "tasks"):
            with pytest.raises(StoreUnavailable, match="cannot be used now"):
                await execute(store, select(tasks))
        assert await execute(store, select(tasks)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


async def test_a_full_disk_is_waited_for_and_a_read_is_no_proof_that_it_is_over(small_disk: Path) -> None:
    changes: list[bool] = []
    async with Store(f"sqlite:///{small_disk / 'store.db'}") as store:
        ledger = Ledger(store, "worker", lambda up, _: changes.append(up))
        assert await finish(ledger, entry())
        filler = small_disk / "filler"
        _fill(filler)
        waiting = asyncio.create_task(finish(ledger, entry(result=b'"' + b"x" * 60_000 + b'"')))
        await eventually(lambda: not ledger.is_up, "the ledger notices")
        for _ in range(50):
            await ledger.crashes(uuid4())
        assert changes == [False]
        filler.unlink()
        assert await waiting

        async def is_up() -> bool:
            await ledger.crashes(uuid4())
            return ledger.is_up

        await eventually(is_up, "the ledger says that it is over")
    assert changes == [False, True]


async def test_our_own_pool_is_no_outage(
    postgresql: Callable[[], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_databases, "POOL_TIMEOUT", 1)
    url, changes = await new_database(postgresql().url), list[bool]()
    async with Store(url, migrate=True) as store:
        ledger = Ledger(store, "worker", lambda up, _: changes.append(up))
        async with locked(url, "tasks"):
            asking = [asyncio.create_task(ledger.crashes(uuid4())) for _ in range(30)]
            with capture_logs() as logs:
                await eventually(lambda: len(logged(logs, "store.busy")) > 15, "most wait for a connection")
            with pytest.raises(StoreBusy, match="all connections of this process"):
                await store.ping()
        assert await asyncio.gather(*asking) == [0] * 30
    assert changes == []


async def test_a_read_only_disk(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk / 'store.db'}"
    await _open(url)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreUnusable, match="read-only"):
        await _open(url)


async def test_a_server_that_is_restarted_under_load(rig: Rig, postgresql: Callable[[], Cluster]) -> None:
    server = postgresql()
    url = await new_database(server.url)
    await _migrated(url)
    app, gate = Warren(), asyncio.Event()

    @app.agent("gated")
    async def gated(number: int) -> int:
        await gate.wait()
        return number

    async with (
        rig.worker(app, store_url=url) as worker,
        rig.client() as client,
        rig.listening("health.store.*") as events,
    ):
        results = [asyncio.create_task(client.run("gated", number, timeout=60)) for number in range(TASKS)]
        await eventually(lambda: worker.running == TASKS, "all of them run")
        await asyncio.to_thread(server.stop, "immediate")
        gate.set()
        await eventually(lambda: [event.state for event in events] == ["down"], "the outage is told")
        assert not any(result.done() for result in results)
        await eventually(lambda: not worker.lanes["gated"].consumer.is_consuming, "nothing more is taken in")
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*results) == list(range(TASKS))
        await eventually(lambda: [event.state for event in events] == ["down", "up"], "the end is told")
        assert await client.run("gated", 7, timeout=60) == 7


async def _migrated(url: str) -> None:
    async with Store(url, migrate=True):
        pass


async def test_steps_are_run_once_over_retries(rig: Rig, tmp_path: Path) -> None:
    app, runs = Warren(), list[int]()

    def count() -> int:
        runs.append(1)
        return len(runs)

    @app.agent("steps")
    async def steps(_payload: None, ctx: Context) -> list[int]:
        value = await ctx.step("once", count)
        await ctx.checkpoint({"attempt": ctx.attempt})
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return [value, ctx.state["attempt"]]

    store_url = f"sqlite:///{tmp_path / 'store.db'}"
    async with rig.worker(app, store_url=store_url), rig.client(store_url=store_url) as client:
        task = make_task("steps", None)
        result = await client.result_of(task)
        record = await client.result(task.task_id)
    assert (result.result, runs) == ([1, 3], [1])
    assert record is not None
    assert (record.status, record.result, len(record.failed_attempts)) == ("succeeded", [1, 3], 2)
