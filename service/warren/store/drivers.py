"""Database drivers of the store, SQLite and PostgreSQL: each runs a function in a transaction."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from warren.errors import ConfigurationError, StoreUnusable
from warren.settings import state_folder
from warren.settings.addresses import Address
from warren.store.postgresql import Connecting

T = TypeVar("T")

BUSY_TIMEOUT: Final = 30_000  # milliseconds that SQLite waits for another process's write
POOL_TIMEOUT: Final = 10  # seconds to wait for a connection to PostgreSQL
COMMAND_TIMEOUT: Final = 30  # seconds that one statement there may take
# It takes the write lock at once: SQLite has no row locks, and refuses to turn a read into a write.
BEGIN: Final = "BEGIN IMMEDIATE"
ONLY_READS: Final = "warren_only_reads"  # the option of a connection that takes no write lock


class SqliteFile:
    """SQLite in a file, used from one thread.

    A transaction is one trip to that thread. aiosqlite makes a trip for each statement, and between two trips
    a busy event loop would hold the only write lock. Three workers that write steps would then wait for each
    other until they give up.
    """

    def __init__(self, url: URL) -> None:
        self._file = Path(url.database) if url.database else None
        self._engine = create_engine(url.set(drivername="sqlite"), hide_parameters=True)
        event.listen(self._engine, "connect", _prepare_connection)
        event.listen(self._engine, "begin", _begin)
        self._reader = self._engine.execution_options(**{ONLY_READS: True})
        self._thread = ThreadPoolExecutor(1, "warren-store")
        # A separate thread: reads see the last commit, and do not wait for writes.
        self._reading_thread = ThreadPoolExecutor(1, "warren-store-reads")
        self._bare: PoolProxiedConnection | None = None

    async def prepare(self) -> None:
        """Make the folder of the file. Raises StoreUnusable if that fails or the file cannot be written."""
        if self._file is not None:
            await self._in_thread(lambda: _make_room_for(cast("Path", self._file)))

    async def close(self) -> None:
        """Close what is open."""
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)
        self._reading_thread.shutdown(wait=False)

    async def run(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in a transaction, which is completed even if this call is cancelled."""
        return await self._in_thread(lambda: _within(self._engine, act))

    async def read(self, act: Callable[[Connection], T]) -> T:
        """Run `act`, which only reads, without the write lock."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading_thread, lambda: _within(self._reader, act))

    async def run_bare(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` with the driver's own connection; each statement is a transaction by itself."""
        return await self._in_thread(lambda: self._run_bare(act))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _run_bare(self, act: Callable[[sqlite3.Connection], T]) -> T:
        if self._bare is None:
            self._bare = self._engine.raw_connection()
        try:
            return act(cast("sqlite3.Connection", self._bare.driver_connection))
        except BaseException:
            self._close_bare()
            raise

    def _close(self) -> None:
        self._close_bare()
        self._engine.dispose()

    def _close_bare(self) -> None:
        """Give the connection back; this rolls back uncommitted work."""
        if self._bare is not None:
            self._bare.close()
            self._bare = None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Several statements of a driver's connection together: committed at the end, or rolled back."""
    connection.execute(BEGIN)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


class PostgresqlServer:
    """A PostgreSQL server, through asyncpg."""

    def __init__(self, address: Address) -> None:
        self._connecting = Connecting(address, COMMAND_TIMEOUT)
        try:
            self._engine = create_async_engine(
                "postgresql+asyncpg://",
                async_creator=self._connecting.connect,
                hide_parameters=True,
                pool_pre_ping=True,
                pool_timeout=POOL_TIMEOUT,
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "WARREN_STORE_URL names PostgreSQL, which needs asyncpg: install Warren with its extra "
                "`postgres`, for example pip install '.[postgres]'"
            ) from error

    async def prepare(self) -> None:
        """Check the files that the address names. Raises ConfigurationError for one that cannot be read."""
        await asyncio.to_thread(self._connecting.check_files)

    async def close(self) -> None:
        """Close what is open."""
        await self._engine.dispose()

    async def run(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in a transaction, which is rolled back if this call is cancelled."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(act)

    async def read(self, act: Callable[[Connection], T]) -> T:
        """The same as `run`: in PostgreSQL, reads do not wait for writes."""
        return await self.run(act)


def _make_room_for(file: Path) -> None:
    try:
        for folder in reversed([one for one in file.parents if not one.exists()]):
            folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreUnusable(f"cannot make a folder for the store: {error}") from error
    # SQLite only says "unable to open"; it needs the folder too, for its write-ahead log.
    for path in (file.parent, file):
        if path.exists() and not os.access(path, os.W_OK):
            raise StoreUnusable(f"the store {file} is read-only: {path} cannot be written")
    _make_private(file)


def _make_private(file: Path) -> None:
    """Give only the owner access to the file, even if it exists: it holds payloads and results.

    SQLite gives its write-ahead log and index the mode of the file (https://sqlite.org/wal.html).
    """
    try:
        file.touch(mode=0o600)
        for one in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            _narrow(one, 0o600)
        if file.parent == state_folder():  # Warren's own folder; other folders stay as they are
            _narrow(file.parent, 0o700)
    except OSError as error:
        raise StoreUnusable(f"cannot make the store {file} private: {error}") from error


def _narrow(path: Path, mode: int) -> None:
    with suppress(FileNotFoundError):  # another process has just removed its log
        found = path.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            path.chmod(mode)


def _prepare_connection(connection: Any, _record: Any) -> None:
    """Settings of one SQLite connection (https://sqlite.org/pragma.html)."""
    connection.isolation_level = None  # `_begin` begins transactions, not the driver
    # Another program may have written text that is not UTF-8. It must not make other rows unreadable.
    connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    _keep_write_ahead_log(cursor)
    # A commit must be on the disk when it returns, because the acknowledgement follows it.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _keep_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Switch the file to a write-ahead log, or wait until another process has done so.

    `busy_timeout` has no effect here: two processes that switch a new file would deadlock, so SQLite answers
    "database is locked" at once (https://sqlite.org/c3ref/busy_handler.html).
    """
    until = time.monotonic() + BUSY_TIMEOUT / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - only to spread
        else:
            return


def _begin(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(ONLY_READS)
    connection.exec_driver_sql("BEGIN" if only_reads else BEGIN)


def _within(engine: Engine, act: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return act(connection)
