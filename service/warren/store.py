"""The store: what workers remember together. SQLite by default, PostgreSQL for a fleet.

Only the modules named `store…` know SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from warren.errors import ConfigurationError, StoreUnavailable, StoreUnusable
from warren.settings import Settings, state_folder, without_password

T = TypeVar("T")

BUSY_TIMEOUT: Final = 30_000  # milliseconds that SQLite waits for another process's write
# It takes the write lock at once: SQLite has no row locks, and refuses to turn a read into a write.
BEGIN: Final = "BEGIN IMMEDIATE"
ONLY_READS: Final = "warren_only_reads"  # the option of a connection that does without that lock
# SQLSTATE classes (PostgreSQL, appendix A) of what passes: connections, rollbacks (deadlocks), resources, and
# an operator who stops or starts the server.
PASSING_CLASSES: Final = {"08", "40", "53", "57"}
# What comes and goes by itself: a server that restarts, a network, a full disk, a lock.
PASSING: Final = (OperationalError, InterfaceError, PoolTimeout, OSError, sqlite3.OperationalError)


def default_url() -> str:
    """SQLite in one file under the user's state folder."""
    return f"sqlite:///{state_folder() / 'store.db'}"


class Store:
    """A database with our tables. An async context manager.

    Entering brings the schema to our version where `migrate` is set, as it is for SQLite; PostgreSQL is
    migrated by `warren store migrate`. Raises StoreUnavailable when it does not answer (worth waiting
    for), StoreUnusable when it is corrupt, read-only, or of another schema version.
    """

    def __init__(self, url: str, *, migrate: bool = False) -> None:
        parsed = make_url(url)
        drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
        backend = parsed.get_backend_name()
        if backend not in drivers:
            raise ConfigurationError(
                f"WARREN_STORE_URL: {without_password(url)!r} is neither sqlite:///FILE nor postgresql://…"
            )
        self.url = without_password(url)
        self.is_sqlite = backend == "sqlite"
        self._migrates = migrate or self.is_sqlite
        self._file = Path(parsed.database) if self.is_sqlite and parsed.database else None
        options: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True, "pool_timeout": 10}
        self._engine = create_async_engine(parsed.set(drivername=drivers[backend]), **options)
        self._reader = self._engine.execution_options(**{ONLY_READS: True})
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
            self._direct = create_engine(parsed.set(drivername="sqlite"))
            event.listen(self._direct, "connect", _prepare_sqlite)
            self._thread = ThreadPoolExecutor(1, "warren-store")

    @classmethod
    def of(cls, settings: Settings, *, migrate: bool = False) -> Self | None:
        """The store that the settings name, or None where they say `none`."""
        url = settings.store_url.get_secret_value() if settings.store_url else default_url()
        return None if url == "none" else cls(url, migrate=migrate)

    async def __aenter__(self) -> Self:
        try:
            if self._file is not None:
                await asyncio.to_thread(_make_room_for, self._file)
            async with self.transaction() as connection:
                await connection.run_sync(_migrate if self._migrates else _check_version)
        except BaseException:
            await self._engine.dispose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.dispose()
        if self.is_sqlite:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._direct.dispose)
            self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back when anything is raised.

        Raises StoreUnavailable or StoreUnusable for what the database itself raises.
        """
        async with self._begun(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """For reading: SQLite's writers do not hold it up. Raises what `transaction` does."""
        async with self._begun(self._reader) as connection:
            yield connection

    @asynccontextmanager
    async def _begun(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise self._translated(error) from error

    async def ping(self) -> None:
        """Ask for nothing. Raises what `transaction` raises."""
        async with self.transaction() as connection:
            await connection.exec_driver_sql("SELECT 1")

    async def in_thread(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite only: run `act` in a transaction of its own, in one trip to a thread that is there for it.

        aiosqlite takes a trip for each statement, which costs more than a statement. Raises what
        `transaction` raises; cancelled, it is carried through all the same.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._act, act)
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def _act(self, act: Callable[[sqlite3.Connection], T]) -> T:
        with closing(self._direct.raw_connection()) as pooled:
            connection = cast("sqlite3.Connection", pooled.driver_connection)
            connection.execute(BEGIN)
            result = act(connection)
            connection.execute("COMMIT")
            return result

    def _translated(self, error: Exception) -> Exception:
        cause = error.orig if isinstance(error, DBAPIError) else error
        text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if "readonly" in text or "read-only" in text:
            return StoreUnusable(f"the store {self.url} is read-only: {text}")
        if isinstance(cause, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
            return StoreUnusable(
                f"the store {self.url} is damaged: {text}. Move the file away, and a new one is made."
            )
        code = str(getattr(cause, "sqlstate", None) or "")
        if isinstance(error, PASSING) or code[:2] in PASSING_CLASSES:
            return StoreUnavailable(f"the store {self.url} cannot be used now: {text}")
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return StoreUnavailable(f"the store {self.url} closed the connection: {text}")
        return error


def _make_room_for(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreUnusable(f"cannot make a folder for the store: {error}") from error
    # SQLite only says "unable to open"; it needs the folder too, for its write-ahead log.
    for path in (file.parent, file):
        if path.exists() and not os.access(path, os.W_OK):
            raise StoreUnusable(f"the store {file} is read-only: {path} cannot be written")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Settings of one SQLite connection (https://sqlite.org/pragma.html)."""
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: an acknowledgement follows it.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(ONLY_READS)
    connection.exec_driver_sql("BEGIN" if only_reads else BEGIN)


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "warren:migrations")
    config.attributes["connection"] = connection
    return config


def _migrate(connection: Connection) -> None:
    _refuse_newer(connection)
    command.upgrade(_alembic(connection), "head")


def _refuse_newer(connection: Connection) -> None:
    """A schema that this Warren does not know comes from a newer one."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        return
    try:
        ScriptDirectory.from_config(_alembic(connection)).get_revision(found)
    except CommandError as error:
        raise StoreUnusable(
            f"the store has schema version {found}, which a newer Warren made: upgrade Warren here"
        ) from error


def _check_version(connection: Connection) -> None:
    _refuse_newer(connection)
    found = MigrationContext.configure(connection).get_current_revision()
    head = ScriptDirectory.from_config(_alembic(connection)).get_current_head()
    if found != head:
        raise StoreUnusable(
            f"the store has schema version {found or 'none'}, this Warren needs {head}: "
            "run `warren store migrate`"
        )
