"""Workers that are killed, stopped, paused and cut off: nothing is lost, nor run twice without need."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.acceptance.processes import Journal, is_of, worker_process
from tests.rig import PATIENCE, Rig, eventually
from warren import Client, Warren
from warren.client.client import make_task
from warren_schemas import ATTEMPTS

SOON = PATIENCE  # far less than the timeouts that must not be waited for (to drain, to publish)


async def submit(client: Client, journal: Journal, count: int, *, gate: bool = True) -> set[str]:
    """Submit tasks of agent `gated` and return their names."""
    names = {f"task-{number}" for number in range(count)}
    tasks = [make_task("gated", journal.work(name, gate=gate)) for name in sorted(names)]
    assert [one.error for one in await client.submit_many(tasks)] == [None] * count
    return names


@asynccontextmanager
async def drained(rig: Rig) -> AsyncIterator[None]:
    """In the end, no task waits and none is dead."""
    yield
    queue = rig.names.queue("gated")

    async def is_empty() -> bool:
        return await rig.depth(queue) == 0

    await eventually(is_empty, f"{queue} is empty")
    assert await rig.depth(rig.names.dead) == 0


@pytest.mark.parametrize("where", ["full disk", "pipe without a reader"])
async def test_a_worker_whose_log_cannot_be_written_goes_on(rig: Rig, where: str) -> None:
    if where == "full disk":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    async with worker_process(rig, output=output) as worker, rig.client() as client:
        os.close(output)
        for number in range(20):
            words = f"{number} " * 1000
            assert await client.run("talk", words, timeout=PATIENCE) == words
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), PATIENCE) == 0


async def test_tasks_of_a_killed_worker_are_run_by_another(rig: Rig, journal: Journal) -> None:
    async with drained(rig), rig.client() as client, worker_process(rig, prefetch=230) as first:
        names = await submit(client, journal, 200)
        await eventually(lambda: len(journal.started()) == 200, "200 tasks run")
        async with worker_process(rig, prefetch=230) as second:
            first.kill()
            await eventually(lambda: len(journal.started()) == 400, "all of them run elsewhere")
            journal.open_gate()
            await eventually(lambda: len(journal.ended()) == 200, "all of them end")
            assert {run.name for run in journal.ended()} == names
            assert {run.pid for run in journal.ended()} == {second.pid}
            second.terminate()  # killed, it might not have acknowledged the last ones
            assert await second.wait() == 0


async def test_sigterm_lets_running_tasks_finish(rig: Rig, journal: Journal) -> None:
    async with (
        drained(rig),
        rig.client() as client,
        rig.listening("health.worker.*.draining") as draining,
        worker_process(rig, drain_timeout=600) as worker,
    ):
        names = await submit(client, journal, 20)
        await eventually(lambda: len(journal.started()) == 20, "the tasks run")
        worker.terminate()
        await eventually(lambda: draining, "the worker drains")
        journal.open_gate()
        assert await asyncio.wait_for(worker.wait(), SOON) == 0
        assert journal.times_started() == dict.fromkeys(names, 1)
        assert {run.name for run in journal.ended()} == names


async def test_what_outlasts_the_drain_timeout_is_run_by_another(rig: Rig, journal: Journal) -> None:
    async with drained(rig), rig.client() as client:
        async with worker_process(rig, drain_timeout=0.3) as worker:
            names = await submit(client, journal, 20)
            await eventually(lambda: len(journal.started()) == 20, "the tasks run")
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), SOON) == 0
        assert journal.ended() == []
        journal.open_gate()
        async with worker_process(rig):
            await eventually(lambda: len(journal.ended()) == 20, "another worker ends them")
        assert {run.name for run in journal.ended()} == names
        assert {run.attempt for run in journal.ended()} == {1}


async def test_a_second_sigterm_releases_at_once(rig: Rig, journal: Journal) -> None:
    async with rig.client() as client, rig.listening("health.worker.*.draining") as draining:
        async with worker_process(rig, drain_timeout=600) as worker:
            await submit(client, journal, 20)
            await eventually(lambda: len(journal.started()) == 20, "the tasks run")
            worker.terminate()
            await eventually(lambda: draining, "the worker drains")
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), SOON) == 0
        assert journal.ended() == []
        assert await rig.depth(rig.names.queue("gated")) == 20


async def test_sigterm_releases_what_waits_for_its_next_attempt(rig: Rig, journal: Journal) -> None:
    async with rig.client() as client, rig.listening("task.later.retrying") as retrying:
        async with worker_process(rig, drain_timeout=600) as worker:
            await client.submit("later", journal.work("patient"))
            await eventually(lambda: retrying, "the task waits for its second attempt")
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), SOON) == 0
        async with rig.plain() as channel:
            waiting = await channel.basic_get(rig.names.queue("later"))
            assert (waiting.header.properties.headers or {})[ATTEMPTS] == 1
        async with worker_process(rig):
            await eventually(journal.ended, "another worker goes on")
        assert [run.attempt for run in journal.started()] == [1, 2]


@pytest.mark.needs_node
async def test_running_tasks_survive_a_broker_restart(rig: Rig) -> None:
    app, gate, runs = Warren(), asyncio.Event(), Counter[int]()

    @app.agent("gated")
    async def gated(number: int) -> int:
        runs[number] += 1
        await gate.wait()
        return number

    async with drained(rig), rig.worker(app) as worker, rig.client() as client:
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(client.run("gated", number, timeout=SOON)) for number in range(200)]
            await eventually(lambda: len(runs) == 200, "200 tasks run")
            await asyncio.to_thread(rig.broker.ctl, "stop_app")
            await asyncio.to_thread(rig.broker.ctl, "start_app")
            await eventually(lambda: worker.totals.adopted == 200, "their new deliveries arrive")
            gate.set()
        assert {task.result() for task in results} == set(range(200))
        assert set(runs.values()) == {1}


@pytest.mark.needs_node
async def test_tasks_that_end_while_the_broker_is_away_are_answered_once(rig: Rig) -> None:
    app, gate, runs = Warren(), asyncio.Event(), Counter[int]()

    @app.agent("gated")
    async def gated(number: int) -> int:
        runs[number] += 1
        await gate.wait()
        return number

    async with drained(rig), rig.worker(app) as worker, rig.client() as client:
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(client.run("gated", number, timeout=SOON)) for number in range(200)]
            await eventually(lambda: len(runs) == 200, "200 tasks run")
            await asyncio.to_thread(rig.broker.ctl, "stop_app")
            gate.set()
            await asyncio.to_thread(rig.broker.ctl, "start_app")
            await eventually(lambda: worker.totals.adopted == 200, "what was unacknowledged comes back")
        assert {task.result() for task in results} == set(range(200))
        assert set(runs.values()) == {1}


async def test_a_worker_that_was_paused_loses_its_tasks_and_recovers(rig: Rig, journal: Journal) -> None:
    async with rig.client() as client, worker_process(rig, amqp_heartbeat=1) as paused:
        await submit(client, journal, 20)
        await eventually(lambda: len(journal.started()) == 20, "the tasks run")
        paused.send_signal(signal.SIGSTOP)
        async with worker_process(rig) as other:
            await eventually(lambda: len(journal.started()) == 40, "all of them run elsewhere")
            journal.open_gate()
            await eventually(lambda: len(journal.ended()) == 20, "all of them end there")
            assert {run.pid for run in journal.ended()} == {other.pid}
            other.terminate()
            assert await other.wait() == 0
        async with rig.listening("health.worker.*.heartbeat") as heartbeats:
            paused.send_signal(signal.SIGCONT)
            await client.submit("gated", journal.work("afterwards"))
            await eventually(
                lambda: "afterwards" in {run.name for run in journal.ended()}, "the paused worker works again"
            )
            assert {run.pid for run in journal.ended() if run.name == "afterwards"} == {paused.pid}
            await eventually(lambda: any(is_of(paused, event) for event in heartbeats), "it is heard again")
        assert await rig.depth(rig.names.dead) == 0
