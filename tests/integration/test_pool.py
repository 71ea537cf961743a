"""Agents with a life, in a worker on a real broker: who runs what, what they may do wrong, what is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.toolbox import logged
from warren import Agent, Context, Reject, Warren
from warren.client.client import make_task
from warren.errors import TaskFailed
from warren.worker.pool import lifecycle as pool_life
from warren.worker.worker import Worker
from warren_schemas import Event

SHORT: Final = {"start_timeout": 0.1, "check_timeout": 0.1, "stop_timeout": 0.1, "recovery_interval": 0.1}
PER_USER: Final = 8  # tasks of each user where there are fewer agents than tasks

Act = Callable[[], Awaitable[None]]


async def nothing() -> None: ...


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_on() -> None:
    """Ignore the first cancellation."""
    try:
        await hang()
    except asyncio.CancelledError:
        await hang()


def raising(error: BaseException) -> Act:
    async def act() -> None:
        raise error

    return act


WRONG: Final[dict[str, Act]] = {
    "hangs": hang,
    "hangs on": hang_on,
    "raises": raising(OSError("broken")),
    "exits": raising(SystemExit(3)),
    "cancelled": raising(asyncio.CancelledError()),
}


class Stage:
    """An application with one class agent, `act`, and what its instances have done."""

    def __init__(self, **options: Any) -> None:
        self.app, self.acts = Warren(), dict[str, Act]()
        self.made: list[Agent] = []
        self.calls: Counter[str] = Counter()
        self.users_of: dict[Agent, set[str]] = {}
        stage = self

        @self.app.agent("act", **options)
        class Acting(Agent):
            async def start(self) -> None:
                stage.made.append(self)
                await stage.live("start")

            async def run(self, payload: str, ctx: Context) -> str:
                stage.users_of.setdefault(self, set()).add(ctx.task.user_id)
                if payload == "fail":
                    raise ValueError("failed")
                if payload == "reject":
                    raise Reject("no")
                await stage.live("run")
                return payload

            async def check(self) -> None:
                await stage.live("check")

            async def stop(self) -> None:
                await stage.live("stop")

    async def live(self, method: str) -> None:
        self.calls[method] += 1
        await self.acts.get(method, nothing)()

    @asynccontextmanager
    async def worker(self, rig: Rig, **changes: Any) -> AsyncIterator[Worker]:
        """A worker whose counts are zero when it has ended."""
        async with rig.worker(self.app, **{**SHORT, **changes}) as worker:
            yield worker
        assert (worker.running, len(worker.pool), worker.pool.is_at_rest) == (0, 0, True)
        health: dict[str, Any] = worker.health()
        assert health["agents"] == {"act": {}}
        assert health["running"] == health["awaiting_agent"] == {"act": 0}
        assert self.calls["stop"] == self.calls["start"] == len(self.made)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_life, "GRACE", 0.05)


def told(events: list[Event], *states: str) -> list[Event]:
    return [event for event in events if event.kind == "agent" and event.state in states]


async def test_an_instance_lives_on_between_the_tasks_of_one_user(rig: Rig) -> None:
    stage = Stage()
    async with rig.listening("health.agent.#") as events:
        async with stage.worker(rig) as worker, rig.client() as client:
            for user in ("ada", "bo") * 3:
                assert await client.run("act", "hello", user_id=user, timeout=10) == "hello"
            assert sorted(map(sorted, stage.users_of.values())) == [["ada"], ["bo"]]
            assert worker.health()["agents"] == {"act": {"idle": 2}}
            assert stage.calls == {"start": 2, "run": 6}
        await eventually(lambda: len(events) == 4)
    assert [event.routing_key for event in events] == [
        *["health.agent.act.started"] * 2,
        *["health.agent.act.stopped"] * 2,
    ]
    assert {str(event.details["user_id"]) for event in events} == {"ada", "bo"}


async def test_the_heartbeat_carries_what_health_says(rig: Rig) -> None:
    stage, gate = Stage(concurrency=3), asyncio.Event()
    stage.acts["run"] = gate.wait  # type: ignore[assignment]
    async with (
        rig.listening("health.worker.*.heartbeat") as beats,
        stage.worker(rig, max_agents=2, heartbeat_interval=0.05) as worker,
        rig.client() as client,
    ):
        await client.submit_many([make_task("act", "x") for _ in range(5)])
        now: dict[str, Any] = await eventually(
            lambda: beats[-1].details if beats and beats[-1].details["awaiting_agent"] != {"act": 0} and
            beats[-1].details["waiting"] == {"act": 2} else None
        )  # fmt: skip
        assert now["agents"] == {"act": {"busy": 2}}
        assert (now["running"], now["awaiting_agent"], now["breakers"]) == (
            {"act": 3}, {"act": 1}, {"act": "closed"},
        )  # fmt: skip
        assert now["loop_lag_s"] >= 0
        assert now["memory_bytes"] > 1_000_000
        assert now.keys() == worker.health().keys()
        gate.set()
        await eventually(lambda: worker.totals.succeeded == 5)


async def test_before_it_runs_a_worker_has_no_health(rig: Rig) -> None:
    with pytest.raises(RuntimeError, match="this worker does not run yet"):
        Worker(Stage().app, rig.settings, rig.url).health()


async def test_three_failures_in_a_row_and_a_check_that_succeeds(rig: Rig) -> None:
    stage = Stage(retries=0)
    async with rig.listening("health.agent.#") as events:
        async with stage.worker(rig) as _, rig.client() as client:
            for payload in ("fail", "fail", "reject", "fail"):
                with pytest.raises(TaskFailed):
                    await client.run("act", payload, timeout=10)
            [recovered] = await eventually(lambda: told(events, "recovered"))
            assert recovered.previous == "unhealthy"
            assert await client.run("act", "well", timeout=10) == "well"
        [unhealthy] = told(events, "unhealthy")
        assert (
            unhealthy.details.items() >= {"failures": 3, "error": "ValueError", "user_id": "default"}.items()
        )
    assert (len(stage.made), stage.calls["check"]) == (1, 1)


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_check_that_does_not_succeed_replaces_the_agent(rig: Rig, wrong: str) -> None:
    stage = Stage(retries=0)
    stage.acts["check"] = WRONG[wrong]
    async with (
        rig.listening("health.agent.#") as events,
        stage.worker(rig) as worker,
        rig.client() as client,
    ):
        for _ in range(3):
            with pytest.raises(TaskFailed):
                await client.run("act", "fail", timeout=10)
        await eventually(lambda: told(events, "replaced"))
        assert await client.run("act", "next", timeout=10) == "next"
        assert worker.health()["agents"] == {"act": {"idle": 1}}
    assert len(stage.made) == 2


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_start_that_fails_is_a_failed_attempt(rig: Rig, wrong: str) -> None:
    stage = Stage(retries=3)
    stage.acts["start"] = WRONG[wrong]
    async with rig.listening("health.agent.#") as events:
        async with stage.worker(rig) as worker, rig.client() as client:
            with pytest.raises(TaskFailed) as failed:
                await client.run("act", "x", timeout=20)
            assert failed.value.reason == "exhausted"
            if "hangs" in wrong:
                assert "start() of agent 'act' took over 0.1 s" in str(failed.value)
            [letter] = await rig.dead()
            assert (letter.header.properties.headers or {})["warren-attempts"] == 4
            await eventually(lambda: told(events, "unhealthy"))
            del stage.acts["start"]
            assert await client.run("act", "next", timeout=10) == "next"
            await eventually(lambda: told(events, "replaced"))
            await eventually(lambda: worker.totals.dead == 1)
        assert len(told(events, "stopped")) <= len(stage.made)


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_stop_that_fails_costs_nobody_a_place(rig: Rig, wrong: str) -> None:
    stage = Stage()
    stage.acts["stop"] = WRONG[wrong]
    async with rig.listening("health.agent.*.stopped") as events:
        with capture_logs() as logs:
            async with stage.worker(rig, max_agents=1), rig.client() as client:
                for user in ("ada", "bo", "cy"):
                    assert await client.run("act", user, user_id=user, timeout=10) == user
        await eventually(lambda: len(events) == 3)
    assert all(event.details["error"] for event in events)
    assert len(logged(logs, "agent.stop_failed")) == 3


async def test_nobody_starves_where_agents_are_fewer_than_tasks(rig: Rig) -> None:
    stage = Stage()
    stage.acts["run"] = lambda: asyncio.sleep(0.001)
    users = ["ada"] * PER_USER + ["bo"] * PER_USER + ["cy"] * PER_USER
    async with stage.worker(rig, max_agents=2, max_agents_per_user=1) as worker, rig.client() as client:
        async with asyncio.TaskGroup() as group:
            for user in users:
                group.create_task(client.run("act", "x", user_id=user, timeout=30))
        # A result arrives before the worker has counted it.
        await eventually(lambda: worker.totals.succeeded == len(users))
        assert len(worker.pool) <= 2
    assert all(len(users) == 1 for users in stage.users_of.values())
    assert set.union(*stage.users_of.values()) == {"ada", "bo", "cy"}


async def test_neither_waiting_for_an_agent_nor_its_start_uses_up_the_time_of_a_task(rig: Rig) -> None:
    stage, gate = Stage(timeout=0.1, retries=0), asyncio.Event()
    stage.acts["start"] = gate.wait  # type: ignore[assignment]
    changes = {"start_timeout": 30, "max_agents": 1}
    async with stage.worker(rig, **changes) as worker, rig.client() as client:
        running = [asyncio.create_task(client.run("act", "x", timeout=20)) for _ in range(2)]
        await eventually(lambda: worker.pool.waiting()["act"] == 2)
        await asyncio.sleep(0.15)
        gate.set()
        assert await asyncio.gather(*running) == ["x", "x"]


async def test_tasks_that_wait_for_an_agent_are_released_at_shutdown(rig: Rig) -> None:
    stage, gate = Stage(), asyncio.Event()
    stage.acts["run"] = gate.wait  # type: ignore[assignment]
    async with rig.client() as client:
        async with stage.worker(rig, max_agents=1) as worker:
            await client.submit_many([make_task("act", "x") for _ in range(5)])
            await eventually(lambda: worker.pool.waiting()["act"] == 4)
            worker.stop()
            await eventually(lambda: worker.totals.released == 4)
            assert worker.pool.counts() == {"act": {"busy": 1}}, "what runs may end"
            gate.set()
        assert worker.totals.succeeded == 1
        await eventually(lambda: _depth_is(rig, 4))
        async with stage.worker(rig) as worker:
            await eventually(lambda: worker.totals.succeeded == 4)


async def _depth_is(rig: Rig, count: int) -> bool:
    return await rig.depth(rig.names.queue("act")) == count


async def test_a_start_that_hangs_is_cut_off_at_shutdown(rig: Rig) -> None:
    stage = Stage()
    stage.acts["start"] = hang
    async with stage.worker(rig, start_timeout=600) as worker, rig.client() as client:
        await client.submit("act", "x")
        await eventually(lambda: stage.made)
    assert worker.totals.released == 1


async def test_tasks_that_an_agent_leaves_behind_do_not_hold_up_the_end(rig: Rig) -> None:
    stage, left = Stage(), list[asyncio.Task[None]]()

    async def leave() -> None:
        left.append(asyncio.create_task(hang_on()))

    stage.acts["start"] = stage.acts["run"] = stage.acts["stop"] = leave
    async with stage.worker(rig), rig.client() as client:
        assert await client.run("act", "x", timeout=10) == "x"
    assert len(left) == 3
    for task in left:
        assert not task.done()
        task.cancel()


async def test_functions_have_the_same_health(rig: Rig) -> None:
    app = Warren()

    @app.agent("plain", retries=0)
    async def plain(payload: str) -> str:
        if payload == "fail":
            raise ValueError("failed")
        return payload

    async with (
        rig.listening("health.agent.#") as events,
        rig.worker(app, recovery_interval=3600) as worker,
        rig.client() as client,
    ):
        for _ in range(3):
            with pytest.raises(TaskFailed):
                await client.run("plain", "fail", timeout=10)
        assert await client.run("plain", "ok", timeout=10) == "ok"
        worker.pool.look_after()  # not before: the second task is to find the first agent out of rotation
        await eventually(lambda: told(events, "recovered"))
        assert worker.health()["agents"] == {"plain": {"idle": 2}}
    assert [event.state for event in told(events, "unhealthy", "recovered")] == ["unhealthy", "recovered"]
    assert len(told(events, "started", "stopped")) == 0
