"""How many ends of tasks the store takes a second: its groups against the bare database driver, same run.

    uv run python -m benchmarks.store

The bare driver inserts the same columns of as many new rows with `executemany` and commits each group; the
store also refuses whoever was overtaken, and SQLite's is reached through a thread. PostgreSQL is
WARREN_TEST_POSTGRES_URL or a temporary cluster of the machine's own binaries; where there is neither, only
SQLite is measured. Rounds alternate, and the figure is the median of the rounds' ratios. Exit status 1 when
a ratio is below its promise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import asyncpg
from rich.console import Console
from rich.table import Table

from tests.stores import GIVEN, binaries, cluster, new_database
from warren.bus.messages import new_id
from warren.store.commit_group import ANY_END, Entry, Postgresql, Sqlite
from warren.store.database import Store
from warren.store.drivers import BUSY_TIMEOUT

PROMISE = 0.5
COLUMNS = (*ANY_END, "crashes", "finished_at", "updated_at")
Groups: TypeAlias = list[list[Entry]]

out = Console()
values_of = attrgetter(*ANY_END)


def groups_of(count: int, size: int) -> Groups:
    """So many new ends, in groups."""
    entries = [
        Entry(new_id(), "", "noop", "default", "succeeded", 0, 1, "benchmark-1", b'"Hello"')
        for _ in range(count)
    ]
    return [entries[start : start + size] for start in range(0, count, size)]


async def timed(groups: Groups, write: Callable[[Sequence[Entry]], Awaitable[object]]) -> float:
    """Seconds to write them one after the other."""
    gc.collect()
    start = time.perf_counter()
    for group in groups:
        await write(group)
    return time.perf_counter() - start


async def through_the_store(url: str, groups: Groups) -> float:
    """Seconds through our own writer."""
    async with Store(url, migrate=True) as store:
        writer = Sqlite(store) if store.is_sqlite else Postgresql(store)
        return await timed(groups, writer.write)


async def through_sqlite3(url: str, groups: Groups) -> float:
    """Seconds through the standard library, as durable as ours."""
    insert = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        for pragma in (f"busy_timeout = {BUSY_TIMEOUT}", "journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")

        async def write(group: Sequence[Entry]) -> None:
            now = time.time()
            rows = [(entry.task_id.hex, *values_of(entry)[1:], 0, now, now) for entry in group]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, rows)
            connection.execute("COMMIT")

        return await timed(groups, write)


async def through_asyncpg(url: str, groups: Groups) -> float:
    """Seconds through asyncpg."""
    places = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    insert = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({places})"
    connection = await asyncpg.connect(url)

    async def write(group: Sequence[Entry]) -> None:
        now = time.time()
        async with connection.transaction():
            await connection.executemany(insert, [(*values_of(entry), 0, now, now) for entry in group])

    try:
        return await timed(groups, write)
    finally:
        await connection.close()


@contextmanager
def server() -> Iterator[str | None]:
    """The URL of a PostgreSQL server, or None where there is none."""
    if GIVEN:
        yield GIVEN
    elif binaries() is None:
        yield None
    else:
        with TemporaryDirectory(prefix="warren-postgresql-") as folder:
            Path(folder).chmod(0o755)  # as root, the server runs as another user
            with cluster(Path(folder) / "cluster") as running:
                yield running.url


@asynccontextmanager
async def database(server_url: str | None) -> AsyncIterator[str]:
    """An empty database with our tables for a while: on the server, or SQLite where that is None."""
    with TemporaryDirectory() as folder:
        url = await new_database(server_url) if server_url else f"sqlite:///{folder}/store.db"
        try:
            async with Store(url, migrate=True):
                pass
            yield url
        finally:
            if server_url:
                await drop(server_url, url.rsplit("/", 1)[1])


async def drop(server_url: str, name: str) -> None:
    """Delete a database of ours."""
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"DROP DATABASE {name}")
    finally:
        await connection.close()


async def rounds(server_url: str | None, count: int, size: int, times: int) -> list[tuple[float, float]]:
    """Ends a second of each round: the bare driver's, and ours. The first round warms up."""
    rates = []
    bare = through_asyncpg if server_url else through_sqlite3
    for number in range(times + 1):
        async with database(server_url) as url:
            raw = await bare(url, groups_of(count, size))
        async with database(server_url) as url:
            ours = await through_the_store(url, groups_of(count, size))
        if number:
            rates.append((count / raw, count / ours))
            out.print(f"round {number}: {count / raw:.0f}/s, {count / ours:.0f}/s", style="dim")
    return rates


def measure(count: int, size: int, times: int) -> bool:
    """Print the table; True when the promises hold."""
    table = Table("ends of tasks", "bare driver /s", "Warren /s", "ratio", "promise", box=None)
    good = True
    with server() as postgresql:
        if postgresql is None:
            out.print("no PostgreSQL: neither WARREN_TEST_POSTGRES_URL nor binaries of it; SQLite alone")
        for name, url in {"SQLite": None, "PostgreSQL": postgresql}.items():
            if name == "PostgreSQL" and url is None:
                continue
            rates = asyncio.run(rounds(url, count, size, times))
            raw, ours = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(mine / bare for bare, mine in rates)
            good = good and ratio >= PROMISE
            table.add_row(name, f"{raw:.0f}", f"{ours:.0f}", f"{ratio:.2f}", f"{PROMISE:.2f}")
    out.print(table)
    return good


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="ends of tasks a round")
    parser.add_argument("--group", type=int, default=50, help="ends in one commit")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sys.exit(0 if measure(arguments.count, arguments.group, arguments.rounds) else 1)


if __name__ == "__main__":
    main()
