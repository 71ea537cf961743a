"""The demo's tasks: submitted, awaited, and compared with a serial computation."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Final
from uuid import UUID

from pydantic import JsonValue

from demo.agents import AGENT_TYPE, analyse, read, source_files
from warren.client.client import Client, make_task
from warren.errors import PublishError
from warren_schemas import Result, Task

USERS: Final = tuple(f"user-{number}" for number in range(1, 6))
OUTSTANDING: Final = 1500  # tasks without a result at once; a task queue takes 2000


class Tasks:
    """So many tasks, the files of the standard library one after the other, and what came of them."""

    def __init__(self, count: int) -> None:
        self.paths: dict[UUID, str] = {}
        self.results: dict[UUID, Result] = {}
        self.refused: dict[UUID, PublishError] = {}
        self.last_result = 0.0
        self._tasks: list[Task] = []
        for path, user_id in zip(islice(cycle(source_files()), count), cycle(USERS), strict=False):
            task = make_task(AGENT_TYPE, {"path": path}, user_id=user_id)
            self._tasks.append(task)
            self.paths[task.task_id] = path

    @property
    def lost(self) -> list[UUID]:
        """Tasks without an outcome that were not refused either."""
        return [task_id for task_id in self.paths if task_id not in self.results | self.refused]

    async def run(self, client: Client) -> None:
        """Submit all, and await their results."""
        room = asyncio.Semaphore(OUTSTANDING)
        async with asyncio.TaskGroup() as group:
            for task in self._tasks:
                group.create_task(self._run_one(client, task, room))

    async def _run_one(self, client: Client, task: Task, room: asyncio.Semaphore) -> None:
        async with room:
            try:
                self.results[task.task_id] = await client.result_of(task)
            except PublishError as error:
                self.refused[task.task_id] = error
            self.last_result = time.monotonic()

    def count(self, status: str) -> int:
        """Outcomes with this status."""
        return sum(result.status == status for result in self.results.values())


def wrong(paths: Mapping[UUID, str], results: Mapping[UUID, Result]) -> dict[UUID, str]:
    """The tasks that succeeded with anything but what a serial computation gives, and their files."""
    expected: dict[str, JsonValue] = {}
    differ: dict[UUID, str] = {}
    with warnings.catch_warnings(action="ignore"):  # about the sources that are parsed
        for task_id, result in results.items():
            path = paths[task_id]
            if path not in expected:
                expected[path] = analyse(read(path)).model_dump(mode="json")
            if result.status == "succeeded" and result.result != expected[path]:
                differ[task_id] = path
    return differ


def unreadable(results: Mapping[UUID, Result]) -> int:
    """Results that say that their file is no valid Python."""
    return sum(isinstance(one.result, dict) and one.result["error"] is not None for one in results.values())
