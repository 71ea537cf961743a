"""The store: the database that workers share. SQLite by default, PostgreSQL for a fleet.

Only the package `store` imports SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from warren.errors import (
    ConfigurationError,
    StoreBusy,
    StoreRefused,
    StoreUnavailable,
    StoreUnusable,
)
from warren.settings import Settings, state_folder, without_password
from warren.settings.addresses import STORE_SETTING, Address, postgresql_address
from warren.store.drivers import PostgresqlServer, SqliteFile
from warren.store.postgresql import Refused

T = TypeVar("T")

# SQLSTATE classes (PostgreSQL, appendix A) of temporary errors: connections, rollbacks (deadlocks),
# resources, and an operator who stops or starts the server.
PASSING_CLASSES: Final = {"08", "40", "53", "57"}
# Temporary errors: a server that restarts, a network failure, a full disk, a lock.
PASSING: Final = (OperationalError, InterfaceError, OSError, sqlite3.OperationalError)

# Errors that drivers raise before they ask the database, for numbers and texts that they cannot encode.
UNFIT: Final = (OverflowError, UnicodeError)

MIGRATION_PAUSE: Final = 0.2  # seconds between two checks whether another process has migrated
MIGRATION_LOCK: Final = (0x77617272, 1)  # its number among PostgreSQL's advisory locks: "warr", 1


def default_url() -> str:
    """SQLite in one file under the user's state folder."""
    return f"sqlite:///{state_folder() / 'store.db'}"


class Store:
    """A database with Warren's tables. An async context manager.

    On entry it migrates the schema if `migrate` is set; for SQLite it always does. For PostgreSQL use
    `warren store migrate`. Entry raises StoreUnavailable if the database does not answer (it may come back),
    StoreUnusable if it is corrupt, read-only, or has another schema version.
    """

    def __init__(self, url: str, *, migrate: bool = False) -> None:
        self.url = without_password(url)
        self.is_sqlite = url.startswith("sqlite")
        self._migrates = migrate or self.is_sqlite
        self._was_usable = False
        self._database = SqliteFile(_sqlite(url)) if self.is_sqlite else PostgresqlServer(_postgresql(url))

    @classmethod
    def of(cls, settings: Settings, *, migrate: bool = False) -> Self | None:
        """The store that the settings name, or None if they say `none`."""
        url = settings.store_url.get_secret_value() if settings.store_url else default_url()
        return None if url == "none" else cls(url, migrate=migrate)

    async def __aenter__(self) -> Self:
        try:
            await self._database.prepare()
            if self._migrates:
                await self._migrate()
            else:
                await self.run(_check_version)
        except BaseException:
            await self._database.close()
            raise
        self._was_usable = True
        return self

    async def _migrate(self) -> None:
        """Migrate, or wait until another process has migrated: only one of several processes does it."""
        while not await self.run(_migrated):  # noqa: ASYNC110 - another process gives no signal
            await asyncio.sleep(MIGRATION_PAUSE)

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()

    async def run(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in a transaction of its own: committed when it returns, rolled back when it raises.

        On SQLite the transaction is completed even if this call is cancelled. Raises StoreUnavailable (the
        database is away), StoreUnusable (it is damaged) or StoreRefused (it refuses this statement).
        """
        with self._translating():
            return await self._database.run(act)

    async def read(self, act: Callable[[Connection], T]) -> T:
        """Run `act`, which only reads: SQLite's writers do not block it. Raises the errors of `run`."""
        with self._translating():
            return await self._database.read(act)

    async def ping(self) -> None:
        """Check that the database answers. Raises the errors of `run`."""
        await self.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

    async def run_bare(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite only: run `act` with the driver's own connection, for thousands of statements a second.

        Each statement is a transaction by itself. Cancellation and errors are as in `run`.
        """
        assert isinstance(self._database, SqliteFile)
        with self._translating():
            return await self._database.run_bare(act)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            # A store that was usable before is worth waiting for: its operator can lift the refusal.
            kind = StoreUnavailable if self._was_usable else StoreUnusable
            raise kind(f"the store {self.url} cannot be used: {error}") from error
        except (StatementError, PoolTimeout, sqlite3.Error, OSError, *UNFIT) as error:
            _without_rows(error)
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        cause = error.orig if isinstance(error, StatementError) and error.orig else error
        text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if _is_about_a_value(cause):  # must be first: the value in the text could match the checks below
            return StoreRefused(f"the store {self.url} does not take a value: {text}")
        if "readonly" in text or "read-only" in text:
            return StoreUnusable(f"the store {self.url} is read-only: {text}")
        if isinstance(cause, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
            return StoreUnusable(
                f"the store {self.url} is damaged: {text}. Move the file away, and a new one is made."
            )
        if isinstance(error, PoolTimeout):
            return StoreBusy(f"all connections of this process to the store {self.url} are in use: {text}")
        code = str(getattr(cause, "sqlstate", None) or "")
        if isinstance(error, PASSING) or code[:2] in PASSING_CLASSES:
            return StoreUnavailable(f"the store {self.url} cannot be used now: {text}")
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return StoreUnavailable(f"the store {self.url} closed the connection: {text}")
        return StoreRefused(f"the store {self.url} refuses: {text}")


def _is_about_a_value(cause: BaseException) -> bool:
    """Whether the driver itself refuses a value; asyncpg raises an InterfaceError for that."""
    return isinstance(cause, UNFIT) or isinstance(cause.__cause__, ValueError)


def _without_rows(error: BaseException) -> None:
    """Remove PostgreSQL's DETAIL from an error: it quotes the row with its payload, and errors are logged."""
    if isinstance(error, DBAPIError):
        error.args = tuple(str(one).partition("\nDETAIL:")[0] for one in error.args)
    driver: BaseException | None = error.orig if isinstance(error, DBAPIError) else None
    while driver is not None:
        if hasattr(driver, "detail"):
            driver.detail = None
        driver.args = tuple(str(one).partition("\nDETAIL:")[0] for one in driver.args)
        driver = driver.__cause__


def _sqlite(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() != "sqlite" or parsed.host:
        raise _unknown(url)
    return parsed


def _postgresql(url: str) -> Address:
    if not url.startswith("postgres"):
        raise _unknown(url)
    return postgresql_address(url)


def _unknown(url: str) -> ConfigurationError:
    shown = without_password(url)
    return ConfigurationError(f"{STORE_SETTING}: {shown!r} is neither sqlite:///FILE nor postgresql://…")


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "warren.store:migrations")
    config.attributes["connection"] = connection
    return config


def _migrated(connection: Connection) -> bool:
    """Migrate in this transaction; False if another process is migrating. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        lock = select(func.pg_try_advisory_xact_lock(*MIGRATION_LOCK))
        if not connection.scalar(lock):
            return False
    _refuse_newer(connection)
    command.upgrade(_alembic(connection), "head")
    return True


def _refuse_newer(connection: Connection) -> None:
    """Raise StoreUnusable for an unknown schema version: a newer Warren made it."""
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
