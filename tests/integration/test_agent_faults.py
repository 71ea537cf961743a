"""Whatever an agent does, its task ends somewhere, and the worker lives on and runs the next one."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.toolbox import logged, record_of
from warren import BlockingContext, Context, Reject, RetryAfter, Warren
from warren.errors import TaskFailed


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I have no words")

    __repr__ = __str__


class Silent(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


RAISED: dict[str, Callable[[], BaseException]] = {
    "no_str": Unspeakable,
    "interrupting_str": Silent,
    "cancelled": asyncio.CancelledError,
    "system_exit": lambda: SystemExit(3),
    "keyboard_interrupt": KeyboardInterrupt,
    "generator_exit": GeneratorExit,
    "stop_iteration": lambda: StopIteration(1),
    "group": lambda: BaseExceptionGroup("many", [SystemExit(1), ValueError("x")]),
    "timeout": lambda: TimeoutError("the agent's own"),
    "unicode": lambda: ValueError("\ud800 and \x00"),
    "huge": lambda: ValueError("x" * 10_000_000),
    "deep": lambda: RecursionError("too deep"),
}

# What Python lets no coroutine, or no future, pass on.
PORTABLE = {
    ("loop", "stop_iteration"): "RuntimeError",
    ("thread", "stop_iteration"): "RuntimeError",
    ("thread", "generator_exit"): "RuntimeError",
}


def failing_app(error: Callable[[], BaseException]) -> Warren:
    """Two agents that fail when their payload says so: one on the event loop, one in a thread."""
    app = Warren()

    @app.agent("loop")
    async def on_the_loop(payload: str) -> str:
        if payload == "fail":
            raise error()
        return payload

    @app.agent("thread")
    def in_a_thread(payload: str) -> str:
        if payload == "fail":
            raise error()
        return payload

    return app


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("name", RAISED)
async def test_whatever_is_raised_counts_as_a_failure(rig: Rig, name: str, kind: str) -> None:
    error = RAISED[name]
    async with rig.worker(failing_app(error)), rig.client() as client:
        with pytest.raises(TaskFailed) as failed:
            await client.run(kind, "fail", timeout=10)
        told = PORTABLE.get((kind, name), type(error()).__name__)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", told)
        [letter] = await rig.dead()
        assert (record_of(letter).attempts, record_of(letter).error_type) == (4, told)
        assert await client.run(kind, "next", timeout=10) == "next"


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_an_attempt_that_takes_too_long_is_a_failure(rig: Rig, kind: str) -> None:
    app, never = Warren(), threading.Event()

    @app.agent("loop", timeout=0.05, retries=1)
    async def on_the_loop(_payload: None) -> None:
        await asyncio.Event().wait()

    @app.agent("thread", timeout=0.05, retries=1)
    def in_a_thread(_payload: None) -> None:
        never.wait(30)

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match=r"no result within 0.05 s") as failed:
            await client.run(kind, None, timeout=10)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", "TimeoutError")
    never.set()


async def test_a_tasks_own_time_wins_over_the_agents(rig: Rig) -> None:
    app = Warren()

    @app.agent("slow", retries=0)
    async def slow(_payload: None) -> None:
        await asyncio.Event().wait()

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match=r"no result within 0.05 s"):
            await client.run("slow", None, timeout_s=0.05, timeout=10)


async def test_an_agent_that_swallows_its_cancellation_keeps_what_it_returns(rig: Rig) -> None:
    app = Warren()

    @app.agent("deaf", timeout=0.05)
    async def deaf(payload: str) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return payload + " all the same"
        return "never"

    async with rig.worker(app), rig.client() as client:
        assert await client.run("deaf", "done", timeout=10) == "done all the same"


async def test_an_agent_that_swallows_its_release_still_finishes(rig: Rig) -> None:
    app, started, runs = Warren(), asyncio.Event(), []

    @app.agent("deaf")
    async def deaf(payload: str) -> None:
        runs.append(payload)
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            runs.append("swallowed")

    async with rig.client() as client:
        async with rig.worker(app, drain_timeout=0.1):
            await client.submit("deaf", "once")
            await started.wait()
        assert runs == ["once", "swallowed"]
        assert await rig.depth(rig.names.queue("deaf")) == 0


async def test_a_blocked_event_loop_costs_the_connection_but_no_task(rig: Rig) -> None:
    app, runs = Warren(), []

    @app.agent("block")
    async def block(payload: int) -> int:
        runs.append(payload)
        if payload == 0:
            time.sleep(3.5)  # noqa: ASYNC251 - exactly what one must not do: over the heartbeat's limit
        return payload

    async with rig.worker(app, amqp_heartbeat=1) as worker, rig.client() as client:
        with capture_logs() as logs:
            await client.submit("block", 0)
            assert await client.run("block", 1, timeout=20) == 1
            await eventually(lambda: worker.totals.succeeded == 2, "both are settled")
            assert logged(logs, "broker.lost")
            [told] = await eventually(lambda: logged(logs, "loop.blocked"), "the block is told")
        assert told["seconds"] >= 3
        assert await client.run("block", 2, timeout=20) == 2
        assert runs == [0, 1, 2]
    assert await rig.depth(rig.names.queue("block")) == 0


async def test_retry_after_waits_and_runs_again(rig: Rig) -> None:
    app, times = Warren(), []

    @app.agent("later")
    async def later(_payload: None, ctx: Context) -> int:
        times.append(asyncio.get_running_loop().time())
        if ctx.attempt == 1:
            raise RetryAfter(0.1, "the quota is used up")
        return ctx.attempt

    async with rig.worker(app), rig.client() as client, rig.listening("task.later.retrying") as events:
        assert await client.run("later", None, timeout=10) == 2
        assert times[1] - times[0] >= 0.1
        [event] = await eventually(lambda: events, "the retry is told")
        assert event.details["message"] == "the quota is used up"
        assert event.details["in_s"] == 0.1


async def test_retry_after_without_end_is_exhausted(rig: Rig) -> None:
    app = Warren()

    @app.agent("later", retries=2)
    async def later(_payload: None) -> None:
        raise RetryAfter(0)

    async with rig.worker(app) as worker, rig.client() as client:
        with pytest.raises(TaskFailed, match="asked to be run again"):
            await client.run("later", None, timeout=10)
        assert record_of((await rig.dead())[0]).attempts == 3
        assert worker.lanes["later"].valve.failures == 0


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_reject_is_final_and_no_failure_of_the_agent(rig: Rig, kind: str) -> None:
    app = failing_app(lambda: Reject("not mine"))
    async with rig.worker(app) as worker, rig.client() as client:
        for _ in range(6):  # more than open a breaker
            with pytest.raises(TaskFailed, match="not mine") as failed:
                await client.run(kind, "fail", timeout=10)
            assert failed.value.reason == "rejected"
        assert worker.lanes[kind].valve.state == "closed"
        assert {record_of(letter).attempts for letter in await rig.dead(6)} == {1}


async def test_progress_is_told_and_checked(rig: Rig) -> None:
    app = Warren()

    @app.agent("report", retries=0)
    def report(fraction: float, ctx: Context) -> None:
        ctx.progress(fraction, "on my way")

    async with rig.worker(app), rig.client() as client, rig.listening("task.report.progress") as events:
        await client.run("report", 0.5, timeout=10)
        [event] = await eventually(lambda: events, "the progress is told")
        assert (event.details["fraction"], event.details["text"]) == (0.5, "on my way")
        for wrong in (1.5, -0.1):
            with pytest.raises(TaskFailed, match="a fraction from 0 to 1") as failed:
                await client.run("report", wrong, timeout=10)
            assert failed.value.error_type == "ValueError"


async def test_what_an_agent_logs_names_its_task(rig: Rig) -> None:
    app = Warren()

    @app.agent("talk")
    def talk(_payload: None, ctx: Context) -> str:
        ctx.log.info("talk.said", word="hello")
        return str(ctx.task.task_id)

    async with rig.worker(app), rig.client() as client:
        with capture_logs() as logs:
            task_id = await client.run("talk", None, timeout=10)
        [entry] = logged(logs, "talk.said")
        expected: dict[str, Any] = {"task_id": task_id, "agent_type": "talk", "attempt": 1, "word": "hello"}
        assert expected.items() <= entry.items()


async def test_a_step_in_a_thread_is_durable_and_runs_once(rig: Rig, tmp_path: Path) -> None:
    app, effects = Warren(), list[int]()

    def effect(payload: int) -> int:
        effects.append(payload)
        return payload + 1

    @app.agent("steps")
    def steps(payload: int, ctx: BlockingContext) -> list[Any]:
        value = ctx.step("effect", effect, payload)
        ctx.checkpoint("on my way")
        if ctx.attempt == 1:
            raise RetryAfter(0)
        return [value, ctx.state]

    async with rig.worker(app, store_url=f"sqlite:///{tmp_path / 'store.db'}"), rig.client() as client:
        assert await client.run("steps", 1, timeout=20) == [2, "on my way"]
    assert effects == [1]
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert connection.execute("SELECT name, value FROM steps").fetchall() == [("effect", b"2")]


@pytest.mark.parametrize("kind", ["timeout", "cancelled"])
async def test_one_that_ignores_its_cancellation_holds_up_nobody(rig: Rig, kind: str, tmp_path: Path) -> None:
    app, end, started = Warren(), asyncio.Event(), asyncio.Event()

    @app.agent("stubborn", timeout=0.05 if kind == "timeout" else 60, retries=0, concurrency=1)
    async def stubborn(payload: str) -> str:
        started.set()
        while payload == "stuck" and not end.is_set():
            with suppress(asyncio.CancelledError):
                await end.wait()
        return payload

    settings: dict[str, Any] = {"store_url": f"sqlite:///{tmp_path / 'store.db'}", "drain_timeout": 0.1}
    try:
        async with rig.worker(app, **settings) as worker, rig.client(**settings) as client:
            stuck = await client.submit("stubborn", "stuck")
            await started.wait()
            if kind == "cancelled":
                await client.cancel(stuck.task_id)
            assert await client.run("stubborn", "behind it", timeout=30) == "behind it"
            assert worker.health()["left_behind"] == 1
            ended = "dead" if kind == "timeout" else "cancelled"
            await eventually(lambda: getattr(worker.totals, ended) == 1, "the stuck task has its end")
    finally:
        end.set()
