"""How the dead letters in the store are searched and replayed when there are many of them.

    uv run python benchmarks/dead_letters.py            (SQLite in a temporary file)
    uv run python benchmarks/dead_letters.py --store-url postgresql://warren@127.0.0.1/empty

It fills an empty store with 100,000 dead letters, times `list` and `groups` (the best and the worst of a few
calls, and with filters that no index serves), and replays 10,000 of them, with the growth of what Python has
allocated. A worker is played by the benchmark itself, so no broker is needed. Exit status 1 when a call takes
a second or more, or memory grows with the number of tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import structlog
import uvloop
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from warren import Settings
from warren.bus.messages import new_id
from warren.client.replay import Progress, Replaying, begin
from warren.store.database import Store
from warren.store.dead_letter_rows import Letter, Letters
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.replay_plan import Plan
from warren.store.schema import tasks
from warren.store.stored_message import Parcel

SECONDS_PROMISE = 1.0  # for one `list` or `groups`
MEMORY_PROMISE = 8 * 1024 * 1024  # bytes that a replay may hold more at its peak than before
BATCH = 200
GROUPS = 40
TRACEBACK = "Traceback (most recent call last):\n" + '  File "agents.py", line 1, in run\n    work()\n' * 60

out = Console()


def letter(number: int) -> Letter:
    """One of many: 40 kinds of failure, 5 agent types, 1,000 users, a body of 1 KiB."""
    task_id, group, died_at = new_id(), number % GROUPS, time.time() - 1_000_000 + number
    agent_type = f"agent-{group % 5}"
    body = {"version": 1, "task_id": str(task_id), "agent_type": agent_type, "payload": "x" * 900}
    return Letter(
        task_id=task_id,
        life="",
        dispatch=0,
        agent_type=agent_type,
        user_id=f"user-{number % 1000}",
        message_id=str(task_id),
        parcel=Parcel(to_json(body), b"{}", 4),
        reason="exhausted",
        error_type=f"Error{group}",
        error_message=f"attempt {number} failed",
        traceback=TRACEBACK,
        fingerprint=f"{group:016x}",
        attempts=4,
        worker_id="worker-1",
        first_failed_at=died_at,
        last_failed_at=died_at,
    )


async def fill(store: Store, count: int) -> float:
    """Seconds to take the letters in, as the desk does."""
    letters, start = Letters(store), time.perf_counter()
    for first in range(0, count, BATCH):
        await letters.take_in([letter(number) for number in range(first, min(first + BATCH, count))])
    return time.perf_counter() - start


async def timed(act: Callable[[], Awaitable[Any]], times: int = 5) -> tuple[float, float]:
    """The best and the worst of a few calls, in seconds."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        await act()
        seconds.append(time.perf_counter() - start)
    return min(seconds), max(seconds)


async def search(store: Store) -> bool:
    """Print how long the queries take; True when each keeps the promise."""
    index = DeadIndex(store)
    queries: dict[str, Callable[[], Awaitable[Any]]] = {
        "list": lambda: _listed(index, Filter()),
        "list --agent-type --since": lambda: _listed(
            index, Filter(agent_type="agent-1", since=time.time() - 960_000)
        ),
        "list --user-id (no index)": lambda: _listed(index, Filter(user_id="user-7")),
        "list --error-type (no index)": lambda: _listed(index, Filter(error_type="Error7")),
        "list of nothing (no index)": lambda: _listed(index, Filter(error_type="Nothing")),
        "groups": lambda: index.groups(Filter(), 50),
        "groups --agent-type": lambda: index.groups(Filter(agent_type="agent-1"), 50),
        "groups --user-id (no index)": lambda: index.groups(Filter(user_id="user-7"), 50),
    }
    table, good = Table("", "best ms", "worst ms", box=None), True
    for name, query in queries.items():
        best, worst = await timed(query)
        good = good and worst < SECONDS_PROMISE
        table.add_row(name, f"{best * 1000:.0f}", f"{worst * 1000:.0f}")
    out.print(table)
    return good


async def _listed(index: DeadIndex, wanted: Filter) -> None:
    """What `warren dead list` asks."""
    await index.find(wanted, 100)
    await index.count(wanted)


async def play_worker(store: Store) -> None:
    """End what is scheduled, as a relay and workers would."""
    scheduled = select(tasks.c.task_id).where(tasks.c.due_at.is_not(None)).limit(500)
    while True:
        ended = (
            tasks.update()
            .where(tasks.c.task_id.in_(scheduled))
            .values(status="succeeded", finished_at=time.time(), due_at=None)
        )
        await store.run(lambda connection: connection.execute(ended))  # noqa: B023 - awaited here
        await asyncio.sleep(0.05)


async def replay(store: Store, count: int, rate: float) -> bool:
    """Replay so many; True when memory stayed flat."""
    plan = Plan(limit=count, rate=rate)
    replaying = Replaying(store, Settings(), await begin(store, plan))
    playing = asyncio.create_task(play_worker(store))
    peaks: list[int] = []

    def tell(progress: Progress) -> None:
        if progress.replayed > count * len(peaks) / 4:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()

    tracemalloc.start()
    before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    end = await replaying.run(tell)
    seconds, after = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    playing.cancel()
    with suppress(asyncio.CancelledError):
        await playing
    grown = max(*peaks, after[1]) - before
    out.print(
        f"replayed {end.replayed} in {seconds:.1f} s ({end.phase}); Python's memory: {grown / 1024:.0f} KiB "
        f"more at the peak, {(after[0] - before) / 1024:.0f} KiB more afterwards; peaks of the quarters: "
        + ", ".join(f"{peak / 1024:.0f} KiB" for peak in peaks)
    )
    return end.replayed == count and grown < MEMORY_PROMISE


async def measure(url: str, count: int, replays: int, rate: float) -> bool:
    """Everything, on one database."""
    async with Store(url, migrate=True) as store:
        seconds = await fill(store, count)
        out.print(f"{store.url}: {count} dead letters taken in, {count / seconds:.0f} a second")
        good = await search(store)
        return await replay(store, replays, rate) and good


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store-url", help="an empty database; SQLite in a temporary file unless given")
    parser.add_argument("--count", type=int, default=100_000, help="dead letters")
    parser.add_argument("--replays", type=int, default=10_000, help="how many are replayed")
    parser.add_argument("--rate", type=float, default=50.0, help="… and how many a second")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url = arguments.store_url or f"sqlite:///{folder}/store.db"
        good = runner.run(measure(url, arguments.count, arguments.replays, arguments.rate))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
