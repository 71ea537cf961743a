"""The databases that the store is tested on: SQLite in a file, and PostgreSQL.

PostgreSQL is `WARREN_TEST_POSTGRES_URL`, or a temporary cluster made with the machine's own binaries. Where
there is neither, its tests skip with a reason; with `postgresql` in `WARREN_TEST_REQUIRE` they fail.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from sqlalchemy import Connection, Engine, Executable

from tests.brokers import missing
from warren.errors import StoreRefused
from warren.store.commit_group import Entry, Verdict
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.run_writes import Write

GIVEN = os.environ.get("WARREN_TEST_POSTGRES_URL")


async def finish(ledger: Ledger, end: Entry) -> bool:
    """Write one end. False: it changed nothing. Raises StoreRefused for one that the store does not take."""
    return await write(ledger, end)


async def write(ledger: Ledger, write: Write) -> bool:
    """Write one; as `finish`."""
    [verdict] = await ledger.write([write])
    if verdict is Verdict.REFUSED:
        raise StoreRefused("the store does not take it")
    return verdict is Verdict.COUNTS


class Cluster:
    """A PostgreSQL server of our own on a free port of 127.0.0.1. As root it runs as the user postgres."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder, self._binaries = folder, binaries
        self._user = "postgres" if os.geteuid() == 0 else None
        self.url = ""

    def create(self) -> None:
        """Make the cluster's files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "warren", "--no-sync")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self.url = f"postgresql://warren@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self._folder} -c max_connections=100"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *args: str) -> None:
        command = [str(self._binaries / program), *args]
        # Without a pipe: the server inherits it and would hold it open.
        with (self._folder / "commands.log").open("a") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, user=self._user, cwd=self._folder, timeout=60
            )


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl, the newest where there are several."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster of our own."""
    where = binaries()
    if where is None:
        missing("postgresql", "there are no PostgreSQL binaries on this machine")
        raise AssertionError
    server = Cluster(folder, where)
    server.create()
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")


def engine_of(store: Store) -> Engine:
    """The engine under a store, to listen to."""
    engine = store._database._engine
    return engine if isinstance(engine, Engine) else engine.sync_engine


@asynccontextmanager
async def written(store: Store) -> AsyncIterator[None]:
    """Meanwhile somebody writes: on SQLite, nobody else can."""
    if not store.is_sqlite:
        async with locked(store.url, "tasks", mode="ROW EXCLUSIVE"):
            yield
        return
    writer = sqlite3.connect(store.url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        yield
    finally:
        writer.close()


@asynccontextmanager
async def locked(url: str, table: str, mode: str = "ACCESS EXCLUSIVE") -> AsyncIterator[None]:
    """Meanwhile a table of PostgreSQL is locked by somebody."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
            yield
    finally:
        await connection.close()


async def execute(store: Store, statement: Executable) -> list[dict[str, Any]]:
    """Run a statement in a transaction of its own, past everything of ours, and give its rows."""

    def act(connection: Connection) -> list[dict[str, Any]]:
        result = connection.execute(statement)
        return [dict(row) for row in result.mappings()] if result.returns_rows else []

    return await store.run(act)


async def new_database(server_url: str) -> str:
    """An empty database, and its URL."""
    name = f"warren_{uuid4().hex}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return f"{server_url.rsplit('/', 1)[0]}/{name}"
