"""A worker that dies between any two of {row written, message published, confirm seen, ack sent}."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Journal, worker_process
from tests.rig import Rig, eventually
from warren import Client
from warren.client.client import make_task
from warren.errors import UnknownAgentType
from warren_schemas import Task

# However often a dead letter was published: it is kept once.
LETTERS = "SELECT count(*) FROM tasks WHERE status = 'dead' AND body IS NOT NULL"
# Only classic queues need to be told of a release: others tell it from a death.
RELEASE = ["release known", "release written"]
POINTS = {
    "succeeded": [
        "effect happened",
        "effect remembered",
        "end known",
        "end written",
        "answer published",
        "answer confirmed",
        "ack due",
        "ack sent",
    ],
    # Nobody waits for an answer, so no handler waits for the row.
    "unasked": [
        "effect happened",
        "effect remembered",
        "end known",
        "end written",
        "ack due",
        "ack sent",
    ],
    "dead": [
        "end known",
        "end written",
        "dead letter published",
        "dead letter confirmed",
        "answer published",
        "answer confirmed",
        "ack due",
        "ack sent",
    ],
    "released": [*RELEASE, "task published", "task confirmed", "ack due", "ack sent"],
    "later": [
        "wait known",
        "wait written",
        "ack due",
        "ack sent",
        "wait claimed",
        "task published",
        "task confirmed",
        "wait marked",
    ],
}


@pytest.mark.parametrize("end", POINTS)
async def test_every_task_has_one_outcome_wherever_its_worker_dies(
    rig: Rig, journal: Journal, tmp_path: Path, end: str
) -> None:
    points = [point for point in POINTS[end] if rig.profile == "classic" or point not in RELEASE]
    settings: dict[str, Any] = {
        "target": "tests.acceptance.crashing_agents:app",
        "store_url": f"sqlite:///{tmp_path / 'store.db'}",
        "hold_limit": 0.1,
        "breaker_fail_max": 1,
        "test_die_at": ",".join(points),
    }
    tasks = {
        point: make_task(
            f"job-{number}",
            journal.work(number)
            | {"end": "succeeded" if end == "unasked" else end, "gate": f"{tmp_path}/{number}"},
        )
        for number, point in enumerate(points)
    }
    async with rig.client() as client:
        ask = partial(_submit, client) if end == "unasked" else client.result_of
        asking = asyncio.gather(*(_as_soon_as_possible(ask, task) for task in tasks.values()))
        async with worker_process(rig, patience=120, **settings) as survivor:
            answers = await asyncio.wait_for(asking, 60)
            await _until_all_is_done(rig, tmp_path, len(points))
            survivor.terminate()
            assert await survivor.wait() == 0
    status = "dead" if end == "dead" else "succeeded"
    if end != "unasked":
        assert {answer.status for answer in answers} == {status}
        assert {answer.attempts for answer in answers} == {2 if end == "later" else 1}
    assert _rows(tmp_path, "SELECT status, count(*) FROM tasks GROUP BY status") == [(status, len(points))]
    effects = Counter(points[int(run.name)] for run in journal.effects())
    assert effects == {point: 2 if point == "effect happened" else 1 for point in points}
    for queue in (*(rig.names.queue(f"job-{number}") for number in range(len(points))), rig.names.dead):
        assert await rig.depth(queue) == 0
    assert _rows(tmp_path, LETTERS) == [(len(points) if end == "dead" else 0,)]


async def _submit(client: Client, task: Task) -> None:
    (submission,) = await client.submit_many([task])
    if submission.error is not None:
        raise submission.error


async def _as_soon_as_possible(submit: Callable[[Task], Awaitable[Any]], task: Task) -> Any:
    """Submit the task as soon as somebody knows its agent type."""
    while True:
        try:
            return await submit(task)
        except UnknownAgentType:
            await asyncio.sleep(0.05)


async def _until_all_is_done(rig: Rig, folder: Path, count: int) -> None:
    """An answer may be there before the task has come back from a worker that died after it."""
    for queue in (*(rig.names.queue(f"job-{number}") for number in range(count)), rig.names.dead):
        await eventually(lambda: _is_empty(rig, queue), f"{queue} is empty")  # noqa: B023
    running = "SELECT count(*) FROM tasks WHERE finished_at IS NULL"
    await eventually(lambda: _rows(folder, running) == [(0,)], "every row has ended")


async def _is_empty(rig: Rig, queue: str) -> bool:
    return await rig.depth(queue) == 0


def _rows(folder: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(folder / "store.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
