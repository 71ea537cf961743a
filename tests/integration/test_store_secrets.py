"""What a store keeps to itself: its files' modes, rows in errors; and several that start it together."""

from __future__ import annotations

import asyncio
import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import insert, text

from tests.stores import Cluster, execute, new_database
from warren.errors import ConfigurationError, StoreRefused, StoreUnusable
from warren.store.database import Store
from warren.store.schema import tasks
from warren.support.local_broker.base import private_folder

SECRET: Final = f"hunter{1 + 1}"  # a traceback quotes the line that has it


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask() -> None:
    os.umask(0o022)


@pytest.mark.usefixtures("usual_umask")
async def test_only_the_owner_may_read_a_file_of_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "store.db"
    async with Store(f"sqlite:///{file}") as store:
        await store.run(lambda connection: connection.execute(text("CREATE TABLE extra (a)")))
        files = sorted(path.name for path in file.parent.iterdir())
        assert files == ["store.db", "store.db-shm", "store.db-wal"]
        assert {mode(path) for path in file.parent.iterdir()} == {0o600}
    assert mode(file.parent) == mode(file.parent.parent) == 0o700


@pytest.mark.usefixtures("usual_umask")
async def test_a_store_that_others_could_read_is_narrowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "warren"
    folder.mkdir(mode=0o755)
    (folder / "store.db").touch(mode=0o644)
    async with Store(f"sqlite:///{folder / 'store.db'}"):
        assert (mode(folder), mode(folder / "store.db")) == (0o700, 0o600)


@pytest.mark.usefixtures("usual_umask")
def test_folders_above_a_private_one_are_private_too(tmp_path: Path) -> None:
    private_folder(tmp_path / "warren" / "broker")
    assert mode(tmp_path / "warren") == mode(tmp_path / "warren" / "broker") == 0o700


async def test_several_start_a_new_file_together(tmp_path: Path) -> None:
    for number in range(5):
        stores = [Store(f"sqlite:///{tmp_path / str(number)}.db") for _ in range(8)]
        await asyncio.gather(*(store.__aenter__() for store in stores))
        await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))


async def test_several_migrate_a_new_database_together(postgresql: Callable[[], Cluster]) -> None:
    url = await new_database(postgresql().url)
    stores = [Store(url, migrate=True) for _ in range(6)]
    await asyncio.gather(*(store.__aenter__() for store in stores))
    await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))


async def test_an_error_does_not_quote_rows(tmp_path: Path) -> None:
    async with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        await _assert_silent(store)


async def test_an_error_of_postgresql_does_not_quote_rows(postgresql: Callable[[], Cluster]) -> None:
    async with Store(await new_database(postgresql().url), migrate=True) as store:
        await _assert_silent(store)


async def _assert_silent(store: Store) -> None:
    with pytest.raises(StoreRefused) as caught:
        await execute(store, insert(tasks).values(task_id=None, user_id=SECRET))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "task_id" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("postgresql://warren@{host}/nosuch", 'database "nosuch" does not exist'),
        ("postgresql://nobody:hunter2@{host}/postgres", 'role "nobody" does not exist'),
        (
            "postgresql://warren@{host}/postgres?options=-c%20nosuch%3D1",
            "unrecognized configuration parameter",
        ),
    ],
)
async def test_what_the_server_refuses_is_told_at_once(
    postgresql: Callable[[], Cluster], changed: str, said: str
) -> None:
    host = postgresql().url.partition("@")[2].partition("/")[0]
    with pytest.raises(StoreUnusable, match=said) as caught:
        await Store(changed.format(host=host)).__aenter__()
    assert "hunter2" not in str(caught.value)


async def test_parameters_reach_the_server(postgresql: Callable[[], Cluster]) -> None:
    url = await new_database(postgresql().url)
    host = url.partition("@")[2].partition("/")[0]
    url = url.replace(host, f"127.0.0.1:1,{host}")  # the first does not answer
    given = (
        f"{url}?application_name=shop&options=-c%20statement_timeout%3D4321&connect_timeout=5&sslmode=prefer"
    )
    async with Store(f"{given}&target_session_attrs=read-write", migrate=True) as store:
        query = text("SELECT current_setting('application_name') a, current_setting('statement_timeout') b")
        [row] = await store.run(lambda connection: connection.execute(query).all())
    assert tuple(row) == ("shop", "4321ms")


async def test_a_file_that_is_not_there_is_told(postgresql: Callable[[], Cluster]) -> None:
    with pytest.raises(ConfigurationError, match=r"^WARREN_STORE_URL: sslrootcert='/no/ca\.pem' cannot"):
        await Store(f"{postgresql().url}?sslmode=verify-ca&sslrootcert=/no/ca.pem").__aenter__()
