"""The main job: a task is published, run and answered; what fails is retried, then dead."""

from __future__ import annotations

import pytest

from tests.rig import Rig, eventually
from warren import Context, Reject, Warren
from warren.client.client import make_task
from warren.errors import TaskFailed
from warren_schemas import DeadLetterHeaders


async def test_a_task_runs_and_its_result_comes_back(rig: Rig) -> None:
    app = Warren()

    @app.agent("double")
    async def double(number: int, ctx: Context) -> dict[str, int]:
        return {"doubled": number * 2, "attempt": ctx.attempt}

    async with rig.worker(app), rig.client() as client:
        assert await client.run("double", 21, timeout=10) == {"doubled": 42, "attempt": 1}


async def test_a_plain_function_runs_in_a_thread(rig: Rig) -> None:
    app = Warren()

    @app.agent("shout")
    def shout(text: str) -> str:
        return text.upper()

    async with rig.worker(app), rig.client() as client:
        assert await client.run("shout", "hello", timeout=10) == "HELLO"


async def test_a_failure_is_retried_until_it_succeeds(rig: Rig) -> None:
    app = Warren()

    @app.agent("third_time")
    async def third_time(_payload: None, ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return ctx.attempt

    async with rig.worker(app), rig.client() as client, rig.listening("task.#") as events:
        assert await client.run("third_time", None, timeout=10) == 3
        await eventually(lambda: len(events) == 2, "two retries are told")
        assert [event.state for event in events] == ["retrying", "retrying"]


async def test_a_task_that_always_fails_is_dead_after_four_attempts(rig: Rig) -> None:
    app = Warren()

    @app.agent("never")
    async def never(_payload: None) -> None:
        raise ValueError("no way")

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match=r"exhausted.*no way"):
            await client.run("never", None, timeout=10)
        [message] = await rig.dead()
        headers = DeadLetterHeaders.from_headers(message.header.properties.headers or {})
        assert (headers.reason, headers.attempts, headers.error_type) == ("exhausted", 4, "ValueError")
        assert "raise ValueError" in (headers.traceback or "")


async def test_a_rejected_task_is_dead_at_once(rig: Rig) -> None:
    app = Warren()
    runs: list[int] = []

    @app.agent("picky")
    async def picky(_payload: None, ctx: Context) -> None:
        runs.append(ctx.attempt)
        raise Reject("not for me")

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match=r"rejected.*not for me"):
            await client.run("picky", None, timeout=10)
        assert runs == [1]


async def test_many_tasks_are_submitted_at_once_and_all_run(rig: Rig) -> None:
    app = Warren()
    seen: set[int] = set()

    @app.agent("collect")
    async def collect(number: int) -> None:
        seen.add(number)

    async with rig.worker(app), rig.client() as client:
        submissions = await client.submit_many([make_task("collect", number) for number in range(1000)])
        assert [one.error for one in submissions] == [None] * 1000
        await eventually(lambda: seen == set(range(1000)), "every task has run")
