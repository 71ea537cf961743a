"""A run asks the store before its first effect, and whenever others may have overtaken it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from tests.integration.test_store import entry, ledger_of, url
from tests.stores import execute, finish, locked, written
from warren.agents.steps import Memory
from warren.errors import FenceLost
from warren.store.ledger import Ledger
from warren.store.run_writes import GivenBack
from warren.store.schema import RUNNING, tasks
from warren.support.stall_detector import Pulse

__all__ = ["url"]

LIMIT = 1000  # bytes


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Function:
    """The function of a step, which counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> int:
        self.runs += 1
        return self.runs


@asynccontextmanager
async def twins(url: str) -> AsyncIterator[tuple[Ledger, Memory, Ledger, Memory]]:
    """Two first runs of one task in two workers, as of a task that was published twice."""
    task_id = uuid4()
    async with ledger_of(url, "one") as one, ledger_of(url, "two") as two:
        yield one, first_run(one, task_id, "one"), two, first_run(two, task_id, "two")


def first_run(ledger: Ledger, task_id: UUID, worker_id: str) -> Memory:
    """The memory of a run that nothing is known of."""
    return Memory(ledger, entry(task_id, status=RUNNING, worker_id=worker_id), LIMIT)


async def test_a_second_first_run_does_not_repeat_what_another_has_remembered(url: str) -> None:
    function = Function()
    async with twins(url) as (_, one, _, two):
        assert await one.step("pay", function) == 1
        with pytest.raises(FenceLost, match="taken over or has ended"):
            await two.step("pay", function)
        with pytest.raises(FenceLost):
            await two.checkpoint(1)
        assert await one.step("ship", function) == 2
    assert function.runs == 2


async def test_of_two_first_runs_that_begin_a_step_at_once_one_runs_it(url: str) -> None:
    for _ in range(10):
        function = Function()
        async with twins(url) as (_, one, _, two):
            outcomes = await asyncio.gather(
                one.step("pay", function), two.step("pay", function), return_exceptions=True
            )
        assert sorted(map(repr, map(type, outcomes))) == sorted(map(repr, (int, FenceLost)))
        assert function.runs == 1


async def test_a_first_run_does_not_begin_a_step_of_a_task_that_has_ended(url: str) -> None:
    function = Function()
    async with twins(url) as (ledger, one, _, two):
        assert await finish(ledger, entry(one.run.task_id))
        for memory in (one, two):
            with pytest.raises(FenceLost):
                await memory.step("pay", function)
    assert function.runs == 0


async def test_a_long_run_that_was_written_down_takes_its_own_row(url: str) -> None:
    async with twins(url) as (ledger, one, _, two):
        await ledger.note_running([one.run])
        with pytest.raises(FenceLost):
            await two.step("pay", Function())
        assert await one.step("pay", Function()) == 1
        row = select(tasks.c.crashes, tasks.c.fence).where(tasks.c.task_id == one.run.task_id)
        assert await execute(ledger.store, row) == [{"crashes": 0, "fence": one.run.fence}]


async def test_a_run_that_was_released_is_gone_on_with_by_a_twin(url: str) -> None:
    function = Function()
    async with twins(url) as (ledger, one, _, two):
        await one.step("pay", function)
        await ledger.write([GivenBack(one.run)])
        assert await two.step("pay", function) == 1
    assert function.runs == 1


async def test_a_fence_whose_attempt_is_cancelled_is_taken_all_the_same(url: str) -> None:
    async with ledger_of(url, "one") as ledger:
        memory = first_run(ledger, uuid4(), "one")
        async with written(ledger.store) if ledger.store.is_sqlite else locked(url, "tasks"):
            attempt = asyncio.create_task(memory.step("pay", Function()))
            await asyncio.sleep(0)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            assert memory.run.fence == 0
        await memory.at_rest()
        assert memory.run.fence == 1
        assert await finish(ledger, entry(memory.run.task_id, fence=memory.run.fence))


@pytest.mark.parametrize("why", ["it stood still", "its message was taken back"])
async def test_a_run_that_may_have_been_overtaken_asks_before_its_next_step(url: str, why: str) -> None:
    clock, adrift, function = Clock(), False, Function()
    async with ledger_of(url, "one") as ledger:
        run = entry(status=RUNNING, worker_id="one")
        memory = Memory(ledger, run, LIMIT, Pulse(9, clock), lambda: adrift)
        await memory.step("pay", function)
        await ledger.claim(run.task_id, "", run.agent_type, run.user_id, crashed=True)
        clock.now, adrift = (10, False) if why == "it stood still" else (0, True)
        for name in ("ship", "send"):
            with pytest.raises(FenceLost):
                await memory.step(name, function)
    assert function.runs == 1


async def test_a_run_that_was_not_overtaken_goes_on(url: str) -> None:
    clock, function = Clock(), Function()
    async with ledger_of(url, "one") as ledger:
        memory = Memory(ledger, entry(status=RUNNING, worker_id="one"), LIMIT, Pulse(9, clock))
        await memory.step("pay", function)
        clock.now = 10
        assert memory.stood_still
        assert await memory.step("ship", function) == 2
        assert not memory.stood_still
