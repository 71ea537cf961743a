"""Schedules on SQLite and on PostgreSQL: one task a tick, whatever schedulers and clocks do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, select, update
from structlog.testing import capture_logs

from tests.stores import Cluster, execute, new_database
from tests.toolbox import logged
from warren.errors import ConfigurationError
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.schedules import BATCH, SKEW, Fired, Schedule, Schedules
from warren.store.schema import SCHEDULED, schedules, tasks
from warren.support import cron
from warren_schemas import Task

T = TypeVar("T")

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
FIVE = Schedule("five", "greet", "*/5 * * * *", b'{"name":"Ada"}', "acme", "urgent")


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Callable[[], Cluster]) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return await new_database(postgresql().url)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with Store(url, migrate=True) as store:
        yield store


@pytest.fixture
def recurring(store: Store, clock: Clock) -> Schedules:
    return Schedules(store, clock=clock)


async def rows(store: Store) -> list[dict[str, Any]]:
    """The tasks in the store, oldest tick first."""
    found = await execute(store, select(tasks))
    return sorted(found, key=lambda row: str(json.loads(row["body"])["created_at"]))


async def kept(recurring: Schedules, name: str = "five") -> Schedule:
    return next(one for one in await recurring.all() if one.name == name)


def ticks(fired: Sequence[Fired]) -> list[float]:
    return [one.tick - NOON for one in fired]


# -- firing -----------------------------------------------------------------------------------------------


async def test_a_tick_becomes_a_task_that_waits_to_be_published(
    store: Store, recurring: Schedules, clock: Clock
) -> None:
    await recurring.add(FIVE)
    assert await recurring.fire() == []
    clock.now += 300.25
    (fired,) = await recurring.fire()
    (row,) = await rows(store)
    assert row["task_id"] == fired.task_id
    assert (row["status"], row["agent_type"], row["user_id"]) == (SCHEDULED, "greet", "acme")
    assert (row["due_at"], row["created_at"], row["priority"], row["headers"]) == (
        clock.now,
        clock.now,
        8,
        b"{}",
    )
    assert (row["life"], row["fence"], row["crashes"], row["attempts"], row["dispatch"]) == ("", 0, 0, 0, 0)
    task = Task.model_validate_json(row["body"])
    assert (task.task_id, task.agent_type, task.user_id) == (fired.task_id, "greet", "acme")
    assert (task.payload, task.priority, task.metadata) == ({"name": "Ada"}, "urgent", {"schedule": "five"})
    assert task.created_at is not None
    assert task.created_at.timestamp() == fired.tick == NOON + 300


async def test_a_tick_fires_at_its_very_second_and_once(recurring: Schedules, clock: Clock) -> None:
    await recurring.add(FIVE)
    clock.now = NOON + 299.999
    assert await recurring.fire() == []
    clock.now = NOON + 300
    assert ticks(await recurring.fire()) == [300]
    assert await recurring.fire() == []


async def test_of_missed_ticks_only_the_last_one_fires(recurring: Schedules, clock: Clock) -> None:
    await recurring.add(FIVE)
    clock.now += 3 * 3600 + 61
    assert ticks(await recurring.fire()) == [3 * 3600]
    assert await recurring.fire() == []
    found = await kept(recurring)
    assert (found.last_at, found.next_at) == (NOON + 3 * 3600, NOON + 3 * 3600 + 300)


async def test_many_are_due_at_once(recurring: Schedules, clock: Clock) -> None:
    names = {f"five-{number:03}" for number in range(2 * BATCH + 7)}
    for name in names:
        await recurring.add(Schedule(name, "greet", "*/5 * * * *"))
    clock.now += 300
    fired: list[str] = []
    while some := await recurring.fire():
        assert len(some) <= BATCH
        fired += [one.name for one in some]
    assert sorted(fired) == sorted(names)


async def test_five_schedulers_at_once_fire_each_tick_once(url: str, clock: Clock) -> None:
    names = [f"every-{number}" for number in range(8)]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(Store(url, migrate=True)) for _ in range(5)]
        fleet = [Schedules(store, clock=clock) for store in stores]
        for name in names:
            await fleet[0].add(Schedule(name, "greet", "* * * * *"))
        for _ in range(10):
            clock.now += 60
            rounds = await asyncio.gather(*(one.fire() for one in fleet))
            assert sorted(one.name for fired in rounds for one in fired) == names
        assert len(await rows(stores[0])) == 10 * len(names)


async def test_a_scheduler_that_dies_while_it_fires_takes_nothing_with_it(
    store: Store, recurring: Schedules, clock: Clock
) -> None:
    async def dying(act: Callable[[Connection], T]) -> T:
        def dies(connection: Connection) -> T:
            act(connection)
            raise ConnectionResetError

        return await store.run(dies)

    await recurring.add(FIVE)
    clock.now += 300
    with pytest.raises(Exception, match="cannot be used now"):
        await Schedules(store, dying, clock).fire()
    assert await rows(store) == []
    assert ticks(await recurring.fire()) == [300]


async def test_a_row_that_nobody_can_read_does_not_stop_the_others(
    store: Store, recurring: Schedules, clock: Clock
) -> None:
    for name in ("a-cron", "b-priority", "five"):
        await recurring.add(Schedule(name, "greet", "*/5 * * * *"))
    for name, change in (("a-cron", {"cron": "when it rains"}), ("b-priority", {"priority": "asap"})):
        await execute(store, update(schedules).where(schedules.c.name == name).values(change))
    clock.now += 300
    with capture_logs() as logs:
        assert [one.name for one in await recurring.fire()] == ["five"]
        await recurring.fire()
    assert [entry["schedule"] for entry in logged(logs, "schedule.unreadable")] == ["a-cron", "b-priority"]


# -- clocks that jump -------------------------------------------------------------------------------------


async def test_a_clock_that_jumps_ahead_fires_one_tick_and_heals_when_it_is_set_right(
    recurring: Schedules, clock: Clock
) -> None:
    await recurring.add(FIVE)
    year = 365 * 86_400
    clock.now += year
    assert ticks(await recurring.fire()) == [year]
    clock.now = NOON + 10
    with capture_logs() as logs:
        assert await recurring.fire() == []
    assert logged(logs, "schedule.pulled_back")
    assert (await kept(recurring)).next_at == NOON + 300
    clock.now = NOON + 301
    assert ticks(await recurring.fire()) == [300]


async def test_a_clock_that_jumps_back_fires_nothing_twice(
    store: Store, recurring: Schedules, clock: Clock
) -> None:
    await recurring.add(FIVE)
    fired: list[float] = []
    for now in (300, 600, 900, 1200, 250, 301, 601, 1201, 1499, 1500):
        clock.now = NOON + now
        fired += ticks(await recurring.fire())
    assert fired == [300, 600, 900, 1200, 1500]
    assert len(await rows(store)) == 5


async def test_clocks_that_differ_a_little_fire_each_tick_once(store: Store) -> None:
    clocks = {offset: Clock() for offset in (-SKEW / 2, -3.0, 0.0, 0.7, SKEW / 2 - 1)}
    fleet = {offset: Schedules(store, clock=clock) for offset, clock in clocks.items()}
    for name, expression in (("minutes", "* * * * *"), ("seconds", "* * * * * */20")):
        await fleet[0.0].add(Schedule(name, "greet", expression))
    with capture_logs() as logs:
        for step in range(100):
            for offset, clock in clocks.items():
                clock.now = NOON + step * 6 + offset
            await asyncio.gather(*(one.fire() for one in fleet.values()))
    found = [(task.metadata["schedule"], task.created_at) for task in map(_task, await rows(store))]
    assert len(found) == len(set(found))
    # The fastest clock has come to 12:10:23; the slowest began at 11:59:30, before there was a schedule.
    assert sum(name == "minutes" for name, _ in found) == 10
    assert sum(name == "seconds" for name, _ in found) == 31
    assert not logged(logs, "schedule.pulled_back")


def _task(row: dict[str, Any]) -> Task:
    return Task.model_validate_json(row["body"])


@pytest.mark.parametrize("expression", ["* * * * * */10", "* * * * *", "*/5 * * * *", "0 3 * * *"])
async def test_however_a_clock_jumps_the_next_tick_is_never_far(
    store: Store, recurring: Schedules, clock: Clock, expression: str
) -> None:
    await recurring.add(Schedule("five", "greet", expression))
    seed = random.Random(expression)
    for _ in range(60):
        clock.now = NOON + seed.choice((1, 60, 3600, 86_400, 10_000_000)) * seed.uniform(-5, 5)
        await recurring.fire()
        first = cron.next_after(expression, clock.now)
        latest = cron.next_after(expression, max(first, clock.now + SKEW))
        assert clock.now < (await kept(recurring)).next_at <= latest
    assert await rows(store)


# -- a store that is away ---------------------------------------------------------------------------------


async def test_ticks_missed_while_the_store_was_away_fire_the_last_one(
    postgresql: Callable[[], Cluster], clock: Clock
) -> None:
    server = postgresql()
    async with Store(await new_database(server.url), migrate=True) as store:
        noticed = asyncio.Event()
        ledger = Ledger(store, "worker-1", lambda up, _reason: None if up else noticed.set())
        recurring = Schedules(store, ledger.surely, clock)
        await recurring.add(FIVE)
        clock.now += 300
        await asyncio.to_thread(server.stop)
        firing = asyncio.create_task(recurring.fire())
        try:
            await noticed.wait()
            clock.now += 3600
        finally:
            await asyncio.to_thread(server.start)
        assert ticks(await firing) == [3900]


# -- keeping them -----------------------------------------------------------------------------------------


async def test_only_a_changed_cron_moves_the_next_tick(recurring: Schedules, clock: Clock) -> None:
    await recurring.add(FIVE)
    clock.now += 400
    again = await recurring.add(Schedule("five", "other", FIVE.cron, b"1"))
    assert (again.next_at, again.agent_type, again.payload) == (NOON + 300, "other", b"1")
    changed = await recurring.add(Schedule("five", "greet", "0 * * * *"))
    assert changed.next_at == NOON + 3600
    assert await recurring.fire() == []
    assert await recurring.all() == [changed]


async def test_removing(recurring: Schedules, clock: Clock) -> None:
    await recurring.add(FIVE)
    assert await recurring.remove("five")
    assert not await recurring.remove("five")
    clock.now += 300
    assert await recurring.fire() == []


async def test_workers_keep_the_schedules_of_their_own_agents(recurring: Schedules, clock: Clock) -> None:
    await recurring.adopt(["a", "b", "c"], {"a": "* * * * *", "b": "* * * * *"})
    await recurring.adopt(["other"], {"other": "@hourly"})
    clock.now += 90
    await recurring.adopt(["a", "b", "c"], {"b": "* * * * *", "c": "@daily"})
    found = {one.name: one for one in await recurring.all()}
    assert list(found) == ["b", "c", "other"]
    assert {one.made_by for one in found.values()} == {"agent"}
    assert [(one.name, one.agent_type) for one in await recurring.fire()] == [("b", "b")]


async def test_workers_that_start_together_adopt_once(url: str, clock: Clock) -> None:
    every = {f"agent-{number}": "* * * * *" for number in range(10)}
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(Store(url, migrate=True)) for _ in range(5)]
        fleet = [Schedules(store, clock=clock) for store in stores]
        await asyncio.gather(*(one.adopt(every, every) for one in fleet))
        assert [one.name for one in await fleet[0].all()] == sorted(every)


async def test_a_persons_schedule_is_never_an_agents(recurring: Schedules) -> None:
    mine = await recurring.add(Schedule("greet", "greet", "@daily", b"1"))
    with capture_logs() as logs:
        await recurring.adopt(["greet"], {"greet": "* * * * *"})
    assert logged(logs, "schedule.name_taken")
    await recurring.adopt(["greet"], {})
    assert await recurring.all() == [mine]


async def test_an_agents_schedule_is_never_a_persons(recurring: Schedules) -> None:
    await recurring.adopt(["greet"], {"greet": "* * * * *"})
    with pytest.raises(ConfigurationError, match="every= in its code"):
        await recurring.add(Schedule("greet", "greet", "@daily"))
    assert (await kept(recurring, "greet")).cron == "* * * * *"


@pytest.mark.parametrize(
    "wrong",
    [
        Schedule("five", "greet", "* * *"),
        Schedule("five", "greet", "* * * * *", b"{"),
        Schedule("five", "greet", "* * * * *", b"NaN"),
        Schedule("five", "greet", "* * * * *", user_id=""),
        Schedule("five", "No Type", "* * * * *"),
    ],
)
async def test_what_makes_no_task_is_refused(recurring: Schedules, wrong: Schedule) -> None:
    with pytest.raises((ConfigurationError, ValueError)):
        await recurring.add(wrong)
    assert await recurring.all() == []
