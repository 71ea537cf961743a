"""What a worker remembers outlives it: steps, fences, and who killed it."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Journal, worker_process
from tests.rig import Rig, eventually
from warren import Context, Warren
from warren.client.client import make_task
from warren_schemas import Event

BYSTANDERS = 199
RUNNING = "SELECT count(*) FROM tasks WHERE status = 'running'"


@pytest.fixture
def memory(tmp_path: Path) -> dict[str, Any]:
    """Settings of workers that share a store."""
    return {
        "store_url": f"sqlite:///{tmp_path / 'store.db'}",
        "target": "tests.acceptance.memory_agents:app",
    }


async def test_a_step_that_was_remembered_is_not_run_again_by_another_worker(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    async with worker_process(rig, **memory) as first, rig.client() as client:
        result = asyncio.create_task(client.run("stepper", journal.work("a"), timeout=60))
        await eventually(journal.started, "the first step")
        await eventually(lambda: _steps(memory) == 1, "the first step is remembered")
        first.send_signal(signal.SIGKILL)
        await first.wait()
        journal.open_gate()
        async with worker_process(rig, **memory) as second:
            assert await result == [first.pid, second.pid]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_steps_stay_remembered_when_the_task_has_waited_too_long_in_its_queue(
    rig: Rig, journal: Journal, memory: dict[str, Any], end: signal.Signals
) -> None:
    async with rig.client(ageing_step=2) as client:
        async with worker_process(rig, **memory, drain_timeout=0) as first:
            result = asyncio.create_task(client.run("stepper", journal.work("a"), timeout=60))
            await eventually(lambda: _steps(memory) == 1, "the first step is remembered")
            first.send_signal(end)
            await first.wait()
        await eventually(lambda: rig.depth(rig.names.ageing), "nobody has taken it from its queue")
        journal.open_gate()
        async with worker_process(rig, **memory) as second:
            assert await result == [first.pid, second.pid]


async def test_a_step_that_was_remembered_is_not_run_again_after_an_outage(rig: Rig, tmp_path: Path) -> None:
    app, runs = Warren(), Counter[str]()

    def count() -> int:
        runs["step"] += 1
        return runs["step"]

    @app.agent("flaky")
    async def flaky(_: None, ctx: Context) -> int:
        number = await ctx.step("count", count)
        runs["attempt"] += 1
        if runs["attempt"] < 3:
            raise ConnectionError("out of order")
        return int(number)

    memory = {"store_url": f"sqlite:///{tmp_path / 'store.db'}"}
    async with (
        rig.worker(app, breaker_fail_max=1, breaker_reset_timeout=0.1, **memory),
        rig.client() as client,
    ):
        assert await client.run("flaky", None, timeout=60) == 1
    assert runs == {"step": 1, "attempt": 3}


async def test_a_task_that_kills_its_workers_is_poison_and_its_neighbours_are_not(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    bystanders = [make_task("gated", journal.work(number)) for number in range(BYSTANDERS)]
    killer = make_task("killer", journal.work("poison"))
    memory |= {"target": "tests.acceptance.memory_agents:crowd", "prefetch": BYSTANDERS + 1}
    async with rig.client() as client:
        async with worker_process(rig, **memory) as first:
            results = [asyncio.create_task(client.result_of(task)) for task in bystanders]
            await eventually(lambda: len(journal.started()) == BYSTANDERS, "the bystanders run")
            poison = asyncio.create_task(client.result_of(killer))
            await first.wait()
        journal.open_gate()
        for _ in range(2):
            async with worker_process(rig, may_die=True, **memory) as another:
                await another.wait()
        async with worker_process(rig, **memory):
            assert {(await result).status for result in results} == {"succeeded"}
            ended = await poison
    assert _count(memory, "SELECT count(*) FROM tasks WHERE status = 'dead'") == 1
    assert ended.status == "dead"
    assert ended.error is not None
    assert ended.error.reason == "poison"
    assert journal.times_started()["poison"] == 3


async def test_a_task_that_kills_its_workers_only_after_it_has_aged_is_poison_too(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    memory |= {"ageing_step": 1}
    async with rig.client(ageing_step=1) as client:
        async with worker_process(rig, **memory) as first:
            poison = asyncio.create_task(client.result_of(make_task("slow-killer", journal.work("poison"))))
            await eventually(lambda: _count(memory, RUNNING) == 1, "the long run is written down")
            journal.open_gate()
            await first.wait()
        for _ in range(2):
            await eventually(lambda: rig.depth(rig.names.ageing), "nobody says that it was dropped")
            async with worker_process(rig, may_die=True, **memory) as another:
                await another.wait()
        async with worker_process(rig, **memory):
            ended = await poison
    assert ended.error is not None
    assert ended.error.reason == "poison"
    assert journal.times_started()["poison"] == 3


async def test_a_long_run_that_is_released_is_no_suspect(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    async with rig.client() as client:
        async with worker_process(rig, **memory, drain_timeout=0) as first:
            result = asyncio.create_task(client.run("gated", journal.work("a"), timeout=60))
            await eventually(lambda: _count(memory, RUNNING) == 1, "the long run is written down")
            first.send_signal(signal.SIGTERM)
            await first.wait()
        journal.open_gate()
        async with worker_process(rig, **memory):
            await result
    assert _count(memory, "SELECT max(crashes) FROM tasks") == 0


async def test_a_worker_that_was_presumed_dead_cannot_win(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    memory["amqp_heartbeat"] = 1
    async with worker_process(rig, **memory) as frozen, rig.client() as client:
        result = asyncio.create_task(client.run("stepper", journal.work("a"), timeout=60))
        await eventually(lambda: _steps(memory) == 1, "the first step is remembered")
        frozen.send_signal(signal.SIGSTOP)
        async with worker_process(rig, **memory) as second:
            await eventually(lambda: len(journal.started()) == 2, "the task runs elsewhere")
            journal.open_gate()
            assert await result == [frozen.pid, second.pid]
            async with rig.listening("health.worker.*.heartbeat") as beats:
                frozen.send_signal(signal.SIGCONT)
                await eventually(lambda: _total(beats, "superseded") == 1, "the late twin is refused")
    assert len(journal.ended()) == 1


async def test_a_run_that_was_overtaken_gives_back_what_it_adopted(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    # Frozen, it can give no sign of life: one that is only cut off from the broker keeps its task.
    memory["amqp_heartbeat"] = 1
    async with worker_process(rig, **memory) as first, rig.client() as client:
        result = asyncio.create_task(client.run("gated", journal.work("a"), timeout=60))
        await eventually(lambda: len(journal.started()) == 1, "the task runs")
        first.send_signal(signal.SIGSTOP)
        async with worker_process(rig, **memory) as overtaker:
            await eventually(lambda: len(journal.started()) == 2, "the task is taken over")
            overtaker.send_signal(signal.SIGKILL)
            await overtaker.wait()
        async with rig.listening("health.worker.*.heartbeat") as beats:
            first.send_signal(signal.SIGCONT)
            await eventually(lambda: _total(beats, "adopted") == 1, "the first run adopts the only message")
            journal.open_gate()
            await result


def _total(beats: list[Event], name: str) -> int:
    """The latest count of a worker."""
    totals = beats[-1].details["totals"] if beats else {}
    assert isinstance(totals, dict)
    return int(str(totals.get(name, 0)))


def _steps(memory: dict[str, Any]) -> int:
    """Steps remembered so far."""
    return _count(memory, "SELECT count(*) FROM steps")


def _count(memory: dict[str, Any], query: str) -> int:
    """What is in the store, read from the file."""
    file = memory["store_url"].removeprefix("sqlite:///")
    if not Path(file).exists():
        return 0
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not migrated yet
    finally:
        connection.close()
