"""A worker that was frozen wakes up with old deliveries in its socket, and with runs that were taken over."""

from __future__ import annotations

import signal
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.acceptance.processes import Journal, is_of, worker_process
from tests.rig import Rig, eventually
from tests.stores import Cluster, execute, new_database
from warren.client.client import make_task
from warren.store.database import Store
from warren.store.schema import steps
from warren_schemas import Event

FULL = 200  # tasks: the prefetch of a worker
SETTLED = ("adopted", "succeeded", "dead", "cancelled", "released", "postponed", "superseded", "stale")


@pytest.fixture(params=["sqlite", "postgresql"])
async def memory(
    request: pytest.FixtureRequest, tmp_path: Path, postgresql: Callable[[], Cluster]
) -> dict[str, Any]:
    """Settings of workers that share a store; the broker soon misses one that is frozen."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = await new_database(postgresql().url)
        async with Store(url, migrate=True):
            pass
    return {"store_url": url, "amqp_heartbeat": 1}


def worker_of(rig: Rig, agent_type: str, memory: dict[str, Any]) -> AbstractAsyncContextManager[Process]:
    """A worker process that has nothing but agents of this type."""
    return worker_process(rig, target=f"tests.acceptance.memory_agents:only_{agent_type}", **memory)


async def are_remembered(memory: dict[str, Any]) -> bool:
    """Whether one step of each task is remembered."""
    async with Store(memory["store_url"]) as store:
        [row] = await execute(store, select(func.count().label("count")).select_from(steps))
    return bool(row["count"] == FULL)


@asynccontextmanager
async def thawed(rig: Rig, frozen: Process) -> AsyncIterator[None]:
    """Let the worker go on; on leaving, it has dealt with what was in its socket."""
    async with rig.listening("health.worker.*.heartbeat") as beats:
        frozen.send_signal(signal.SIGCONT)
        yield
        await eventually(lambda: _is_done(frozen, beats), "it has dealt with its old deliveries")


def _is_done(worker: Process, beats: list[Event]) -> bool:
    """Whether it is connected again, and has settled all that it was ever given."""
    details: dict[str, Any] = next((event.details for event in reversed(beats) if is_of(worker, event)), {})
    if not details or not details["tally"]["reconnects"]["consuming"]:
        return False
    settled = sum(details["totals"][name] for name in SETTLED)
    return bool(settled == details["totals"]["delivered"]) and not any(details["running"].values())


async def fill_its_socket(rig: Rig, journal: Journal, frozen: Process, agent_type: str) -> None:
    """Freeze a worker, and have the broker send it as many tasks as it may hold."""
    frozen.send_signal(signal.SIGSTOP)
    tasks = [make_task(agent_type, journal.work(number)) for number in range(FULL)]
    async with rig.client() as client:
        assert not [one.error for one in await client.submit_many(tasks) if one.error]

    async def is_sent() -> bool:
        return await rig.depth(rig.names.queue(agent_type)) == 0

    await eventually(is_sent, "every task is on its way")


@pytest.mark.parametrize("agent_type", ["walker", "gated"])
async def test_old_deliveries_are_not_run_again_when_the_tasks_have_ended(
    rig: Rig, journal: Journal, memory: dict[str, Any], agent_type: str
) -> None:
    journal.open_gate()
    async with worker_of(rig, agent_type, memory) as frozen:
        await fill_its_socket(rig, journal, frozen, agent_type)
        async with worker_of(rig, agent_type, memory) as other:
            await eventually(lambda: len(journal.ended()) == FULL, "all of them end elsewhere")
            assert {run.pid for run in journal.ended()} == {other.pid}
            async with thawed(rig, frozen):
                pass
    assert len(journal.ended()) == FULL
    assert set(Counter(run.name for run in [*journal.effects(), *journal.started()]).values()) == {1}


async def test_old_deliveries_are_not_run_again_while_the_tasks_run_elsewhere(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    async with worker_of(rig, "walker", memory) as frozen:
        await fill_its_socket(rig, journal, frozen, "walker")
        async with worker_of(rig, "walker", memory):
            await eventually(lambda: are_remembered(memory), "the first steps are remembered elsewhere")
            async with thawed(rig, frozen):
                pass
            journal.open_gate()
            await eventually(lambda: len(journal.ended()) == FULL, "all of them end")
    assert len(journal.effects()) == 2 * FULL
    assert set(Counter(run.name for run in journal.effects()).values()) == {1}


async def test_a_thawed_run_does_not_repeat_a_step_that_was_remembered_meanwhile(
    rig: Rig, journal: Journal, memory: dict[str, Any]
) -> None:
    async with worker_of(rig, "walker", memory) as frozen, rig.client() as client:
        tasks = [make_task("walker", journal.work(number)) for number in range(FULL)]
        await client.submit_many(tasks)
        await eventually(lambda: are_remembered(memory), "the first steps are remembered")
        frozen.send_signal(signal.SIGSTOP)
        journal.open_gate()
        async with worker_of(rig, "walker", memory) as other:
            await eventually(lambda: len(journal.ended()) == FULL, "all of them end elsewhere")
            async with thawed(rig, frozen):
                pass
    assert {run.pid for run in journal.ended()} == {other.pid}
    assert len(journal.effects()) == 2 * FULL
    assert set(Counter(run.name for run in journal.effects()).values()) == {1}
