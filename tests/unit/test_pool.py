"""The pool, case by case: who gets which agent, what a failure means, and what an agent may do wrong."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import eventually
from warren import Agent, Reject, RetryAfter, Settings, Warren
from warren.errors import FenceLost, WarrenError
from warren.support.failure import AgentRaised
from warren.worker.pool import lifecycle as pool_life
from warren.worker.pool.pool import Pool

QUICK: dict[str, Any] = {"start_timeout": 0.05, "check_timeout": 0.05, "stop_timeout": 0.05}
ASKED: contextvars.ContextVar[str] = contextvars.ContextVar("asked", default="nobody")


class Scripted(Agent):
    """An agent that writes down its life, and does what the bench says."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.life = bench, list[str]()
        bench.made.append(self)

    async def start(self) -> None:
        await self.live("start")

    async def run(self) -> None: ...

    async def check(self) -> None:
        await self.live("check")

    async def stop(self) -> None:
        await self.live("stop")

    async def live(self, method: str) -> None:
        self.life.append(method)
        await self.bench.acts.get(method, nothing)()


async def nothing() -> None: ...


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_for_good() -> None:
    """Ignore the pool's cancellation; the next one is that of the event loop's end."""
    with suppress(asyncio.CancelledError):
        await hang()
    await hang()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        raise error

    return act


class Bench:
    """A pool, three agent types (two of class agents, one function), and what was told."""

    def __init__(self, **settings: Any) -> None:
        self.made: list[Scripted] = []
        self.acts: dict[str, Callable[[], Awaitable[None]]] = {}
        self.events: list[tuple[str, str]] = []
        self.details: list[dict[str, Any]] = []
        app = Warren()
        # The look at registration is not one of the pool's.
        for name in ("a", "b"):
            app.register(name, lambda: Scripted(self))
        self.made.clear()

        @app.agent("f")
        async def function() -> None: ...

        self.specs = app.agents
        self.pool = Pool(Settings(**{**QUICK, **settings}), self.tell)

    def tell(self, kind: str, subject: str, state: str, **more: Any) -> None:
        assert kind == "agent"
        self.events.append((subject, state))
        self.details.append(more["details"])

    def lease(self, agent_type: str = "a", user_id: str = "ada") -> Any:
        return self.pool.lease(self.specs[agent_type], user_id)

    async def use(
        self, error: BaseException | None = None, agent_type: str = "a", user_id: str = "ada"
    ) -> Agent:
        """Lease an agent for an attempt that ends like this."""
        agent: Agent
        with nullcontext() if error is None else suppress(type(error)):
            async with self.lease(agent_type, user_id) as agent:
                if error is not None:
                    raise error
        return agent

    async def make_unhealthy(self, agent_type: str = "a", user_id: str = "ada") -> Agent:
        agents = [await self.use(ValueError("broken"), agent_type, user_id) for _ in range(3)]
        assert len(set(agents)) == 1
        return agents[0]

    async def at_rest(self) -> None:
        await eventually(lambda: self.pool.is_at_rest, "the pool is at rest")

    def count(self, state: str, agent_type: str = "a") -> int:
        return self.pool.counts().get(agent_type, Counter())[state]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches, and sees that nothing is left of their pools in the end."""
    benches: list[Bench] = []

    def bench(**settings: Any) -> Bench:
        benches.append(Bench(**settings))
        return benches[-1]

    yield bench
    for one in benches:
        await one.pool.close()
        assert (len(one.pool), one.pool.counts(), one.pool.is_at_rest) == (0, {}, True)
        assert all(agent.life.count("stop") == 1 for agent in one.made)


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_life, "GRACE", 0.02)


class TestWhoGetsWhich:
    async def test_an_idle_agent_is_used_again_and_started_once(self, bench: Bench) -> None:
        assert await bench.use() is await bench.use()
        assert bench.made[0].life == ["start"]
        assert bench.events == [("a", "started")]
        assert bench.details[0]["user_id"] == "ada"

    async def test_never_by_another_user_or_type(self, bench: Bench) -> None:
        agents = [await bench.use(None, name, user) for name in ("a", "b", "f") for user in ("ada", "bo")]
        assert len(set(agents)) == 6

    async def test_two_at_once_are_two(self, bench: Bench) -> None:
        async with bench.lease() as one, bench.lease() as other:
            assert one is not other
        assert bench.count("idle") == 2

    async def test_warm_before_cold_and_fewest_failures_first(self, bench: Bench) -> None:
        async with AsyncExitStack() as stack:
            agents = [await stack.enter_async_context(bench.lease()) for _ in range(2)]
        bench.acts["start"] = raising(ValueError("no start"))
        async with AsyncExitStack() as stack:
            for _ in agents:
                await stack.enter_async_context(bench.lease())
            with pytest.raises(AgentRaised, match="ValueError"):
                await bench.use()
            await bench.at_rest()
        del bench.acts["start"]
        assert bench.count("idle") == 3, "two are warm, one is cold"

        def failed(agent: Agent) -> int:
            return next(member.failures for member in bench.pool._members if member.agent is agent)

        first = await bench.use(ValueError())
        second = await bench.use(ValueError())
        assert {first, second} == set(agents), "the one without a failure"
        again = await bench.use(ValueError())
        assert [failed(again), failed(*({first, second} - {again}))] == [2, 1]
        assert await bench.use() is not again, "the one with fewer"
        async with AsyncExitStack() as stack:
            for _ in agents:
                await stack.enter_async_context(bench.lease())
            await stack.enter_async_context(bench.lease())
            assert len(bench.pool) == 3, "the cold one is started rather than a fourth made"
            assert {agent.life[0] for agent in bench.made} == {"start"}

    async def test_a_slow_start_holds_up_nobody_else(self, make: Callable[..., Bench]) -> None:
        bench, gate = make(start_timeout=30), asyncio.Event()
        bench.acts["start"] = gate.wait  # type: ignore[assignment]
        slow = asyncio.create_task(bench.use())
        await eventually(lambda: bench.made)
        del bench.acts["start"]
        assert await bench.use() is bench.made[1], "of the same type and user"
        await bench.use(None, "b", "bo")
        assert await slow is bench.made[1], "what becomes idle meanwhile is taken"
        gate.set()
        await bench.at_rest()
        assert bench.count("idle") == 2

    async def test_starts_do_not_see_the_variables_of_a_task(self, bench: Bench) -> None:
        seen: list[str] = []

        async def look() -> None:
            seen.append(ASKED.get())

        bench.acts["start"] = bench.acts["stop"] = look
        ASKED.set("ada's task")
        await bench.use()
        await bench.pool.close()
        assert seen == ["nobody", "nobody"]


class TestLimits:
    async def test_the_users_limit_holds_up_only_that_user(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents_per_user=1)
        async with bench.lease() as first:
            waiting = asyncio.create_task(bench.use())
            await eventually(lambda: bench.pool.waiting()["a"])
            await bench.use(None, "a", "bo")
            assert len(bench.pool) == 2
            assert not waiting.done()
        assert await waiting is first

    async def test_an_idle_agent_of_another_type_gives_its_place(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents_per_user=1)
        await bench.use(None, "a")
        await bench.use(None, "b")
        assert bench.events == [("a", "started"), ("a", "stopped"), ("b", "started")]

    async def test_the_least_recently_used_gives_its_place(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents=3)
        for user in ("ada", "bo", "cy", "ada"):
            await bench.use(None, "a", user)
        await bench.use(None, "a", "di")
        assert [agent.life for agent in bench.made] == [["start"], ["start", "stop"], ["start"], ["start"]]

    async def test_at_the_users_limit_only_the_users_own_give_their_place(self, make: Any) -> None:
        bench = make(max_agents_per_user=2)
        await bench.use(None, "a", "bo")
        async with bench.lease("a", "ada"):
            await bench.use(None, "b", "ada")
            await bench.use(None, "f", "ada")
        assert [agent.life for agent in bench.made] == [["start"], ["start"], ["start", "stop"]]

    async def test_an_unhealthy_one_gives_its_place_first(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents=2)
        await bench.use(None, "a", "bo")
        await bench.make_unhealthy("f")
        await bench.use(None, "a", "cy")
        assert [agent.life for agent in bench.made] == [["start"], ["start"]]
        assert ("f", "stopped") in bench.events

    async def test_nobody_starves_at_the_limit(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents=2)
        order: list[str] = []

        async def attempt(user: str) -> None:
            async with bench.lease("f" if user == "cy" else "a", user):
                order.append(user)
                await asyncio.sleep(0)

        ada = [asyncio.create_task(attempt("ada")) for _ in range(20)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(attempt(user)) for user in ("bo", "cy") * 5]
        await asyncio.gather(*ada, *others)
        assert sorted(order) == ["ada"] * 20 + ["bo"] * 5 + ["cy"] * 5
        assert len(bench.pool) <= 2
        assert order.index("bo") >= 18, "who came first is served first"

    async def test_whoever_came_first_is_served_first(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents=1)
        order: list[int] = []

        async def attempt(number: int) -> None:
            async with bench.lease("f", f"user{number % 3}"):
                order.append(number)

        async with bench.lease("f", "somebody"):
            waiting = []
            for number in range(9):
                waiting.append(asyncio.create_task(attempt(number)))
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert order == list(range(9))

    async def test_who_gives_up_leaves_the_line(self, make: Callable[..., Bench]) -> None:
        bench = make(max_agents=1)
        async with bench.lease() as agent:
            gone, stays = asyncio.create_task(bench.use()), asyncio.create_task(bench.use())
            await eventually(lambda: bench.pool.waiting()["a"] == 2)
            gone.cancel()
            await asyncio.wait({gone})
            assert bench.pool.waiting()["a"] == 1
        assert await stays is agent

    async def test_an_agent_given_in_the_moment_of_the_cancellation_is_put_back(
        self, make: Callable[..., Bench]
    ) -> None:
        bench = make(max_agents=1)
        async with bench.lease():
            gone = asyncio.create_task(bench.use())
            await eventually(lambda: bench.pool.waiting()["a"])
        gone.cancel()  # in the same turn in which it was given the agent
        await asyncio.wait({gone})
        assert gone.cancelled()
        assert bench.count("idle") == 1

    async def test_an_agent_without_a_task_is_stopped_after_a_while(self, make: Callable[..., Bench]) -> None:
        bench = make(idle_ttl=0.05)
        retiring = asyncio.create_task(bench.pool.retire())
        await bench.use(None, "a")
        await bench.use(None, "f")
        async with bench.lease("b"):
            await eventually(lambda: len(bench.pool) == 1)
        assert bench.events[-1] == ("a", "stopped")
        await eventually(lambda: len(bench.pool) == 0)
        retiring.cancel()


class TestHealth:
    async def test_failures_in_a_row_take_an_agent_out_of_rotation(self, bench: Bench) -> None:
        unhealthy = await bench.make_unhealthy()
        assert bench.events[-1] == ("a", "unhealthy")
        assert (
            bench.details[-1].items() >= {"failures": 3, "error": "ValueError", "message": "broken"}.items()
        )
        assert bench.count("unhealthy") == 1
        assert await bench.use() is not unhealthy

    async def test_a_success_ends_the_row(self, bench: Bench) -> None:
        for error in (ValueError(), ValueError(), None, ValueError(), ValueError()):
            await bench.use(error)
        assert (len(bench.made), bench.count("idle")) == (1, 1)

    @pytest.mark.parametrize("error", [Reject("no"), RetryAfter(1), FenceLost("late")])
    async def test_what_is_the_tasks_own_does_not_count(self, bench: Bench, error: Exception) -> None:
        for _ in range(10):
            await bench.use(error)
        await bench.use(ValueError())
        await bench.use(ValueError())
        await bench.use(error)
        await bench.use(ValueError())
        assert bench.count("unhealthy") == 1, "nor does it end the row"

    async def test_a_cancellation_does_not_count(self, make: Callable[..., Bench]) -> None:
        bench = make(unhealthy_after=1)

        async def attempt() -> None:
            async with bench.lease():
                await hang()

        running = asyncio.create_task(attempt())
        await eventually(lambda: bench.count("busy"))
        running.cancel()
        await asyncio.wait({running})
        assert bench.count("idle") == 1

    async def test_a_check_that_succeeds_brings_it_back(self, bench: Bench) -> None:
        agent = await bench.make_unhealthy()
        bench.pool.look_after()
        await bench.at_rest()
        assert bench.events[-1] == ("a", "recovered")
        assert await bench.use(ValueError()) is agent
        assert bench.count("unhealthy") == 0, "its row of failures has ended"

    async def test_a_function_comes_back_after_one_interval(self, make: Callable[..., Bench]) -> None:
        bench = make(recovery_interval=0.02)
        recovering = asyncio.create_task(bench.pool.recover())
        await bench.make_unhealthy("f")
        await eventually(lambda: bench.count("idle", "f"))
        assert bench.events == [("f", "unhealthy"), ("f", "recovered")]
        recovering.cancel()

    @pytest.mark.parametrize(
        "check",
        [hang, hang_for_good, raising(ValueError("ill")), raising(SystemExit(1)),
         raising(asyncio.CancelledError())],
        ids=["hangs", "ignores its cancellation", "raises", "exits", "cancelled"],
    )  # fmt: skip
    async def test_a_check_that_fails_replaces_it(self, bench: Bench, check: Any) -> None:
        agent = await bench.make_unhealthy()
        bench.acts["check"] = check
        bench.pool.look_after()
        await bench.at_rest()
        assert bench.events[-1] == ("a", "replaced")
        assert [one.life for one in bench.made] == [["start", "check", "stop"], ["start"]]
        assert await bench.use() is bench.made[1] is not agent
        assert len(bench.pool) == 1

    async def test_checks_do_not_wait_for_each_other(self, make: Callable[..., Bench]) -> None:
        bench, gate = make(check_timeout=30), asyncio.Event()
        await bench.make_unhealthy("a", "ada")
        await bench.make_unhealthy("b", "bo")
        bench.acts["check"] = gate.wait  # type: ignore[assignment]
        bench.pool.look_after()
        bench.pool.look_after()
        await eventually(lambda: all(one.life == ["start", "check"] for one in bench.made))
        gate.set()
        await bench.at_rest()
        assert bench.count("idle", "a") == bench.count("idle", "b") == 1

    async def test_one_that_cannot_be_replaced_stays_unhealthy_until_it_is_given_up(
        self, make: Callable[..., Bench]
    ) -> None:
        bench = make(idle_ttl=600)
        await bench.make_unhealthy()
        bench.acts["check"] = bench.acts["start"] = raising(OSError("gone"))
        bench.pool.look_after()
        await bench.at_rest()
        assert bench.events[-1] == ("a", "unhealthy")
        assert bench.count("unhealthy") == 1
        [member] = bench.pool._members
        member.since = time.monotonic() - 601
        bench.pool.look_after()
        await bench.at_rest()
        assert bench.events[-1] == ("a", "stopped")
        assert len(bench.pool) == 0


FAILING = {
    "hangs": hang,
    "ignores its cancellation": hang_for_good,
    "raises": raising(ValueError("broken")),
    "exits": raising(SystemExit(3)),
    "generator exit": raising(GeneratorExit()),
    "cancelled": raising(asyncio.CancelledError()),
}


class TestFaults:
    @pytest.mark.parametrize("name", FAILING)
    async def test_a_start_that_fails_is_the_agents_failure(self, bench: Bench, name: str) -> None:
        bench.acts["start"] = FAILING[name]
        for _ in range(3):
            assert bench.count("unhealthy") == 0
            with pytest.raises(AgentRaised) as failed:
                async with bench.lease():
                    pytest.fail("there is no agent to run")
            if "hangs" in name or "ignores" in name:
                assert str(failed.value.error) == "start() of agent 'a' took over 0.05 s"
            await bench.at_rest()
        assert bench.events == [("a", "unhealthy")]
        assert all(agent.life == ["start", "stop"] for agent in bench.made)
        del bench.acts["start"]
        bench.pool.look_after()
        await bench.at_rest()
        assert bench.events[-1] == ("a", "replaced")
        assert await bench.use() is bench.made[-1]

    async def test_an_agent_that_cannot_be_made_is_one_whose_start_failed(self, bench: Bench) -> None:
        made = 0

        class Picky(Agent):
            def __init__(self) -> None:
                nonlocal made
                made += 1
                if made == 2:
                    raise StopIteration

            async def run(self) -> None: ...

        app = Warren()
        app.agent("picky")(Picky)
        spec = app.agents["picky"]
        with pytest.raises(AgentRaised, match="RuntimeError"):
            async with bench.pool.lease(spec, "ada"):
                pytest.fail("there is no agent to run")
        await bench.at_rest()
        async with bench.pool.lease(spec, "ada") as agent:
            assert type(agent) is Picky

    @pytest.mark.parametrize("name", FAILING)
    async def test_a_stop_that_fails_gives_its_place_free(
        self, make: Callable[..., Bench], name: str
    ) -> None:
        bench = make(max_agents=1)
        await bench.use(None, "a", "ada")
        bench.acts["stop"] = FAILING[name]
        with capture_logs() as logs:
            await bench.use(None, "a", "bo")
        assert len(bench.pool) == 1
        assert any(entry["event"] == "agent.stop_failed" for entry in logs)
        stopped = bench.details[bench.events.index(("a", "stopped"))]
        assert stopped["error"]
        del bench.acts["stop"]

    async def test_agents_stop_all_at_once_at_the_end(self, bench: Bench) -> None:
        for number in range(50):
            await bench.use(None, "a", f"user{number}")
        bench.acts["stop"] = hang
        began = time.monotonic()
        await bench.pool.close()
        assert time.monotonic() - began < 50 * 0.05
        assert len(bench.pool) == 0

    async def test_the_end_cuts_off_starts_and_checks_and_fails_who_waits(
        self, make: Callable[..., Bench]
    ) -> None:
        bench = make(start_timeout=600, check_timeout=600, max_agents=2)
        await bench.make_unhealthy("a", "ada")
        bench.acts["check"] = bench.acts["start"] = hang
        bench.pool.look_after()
        waiting = [asyncio.create_task(bench.use(None, "b", user)) for user in ("bo", "cy")]
        await eventually(lambda: len(bench.made) == 2 and bench.pool.waiting()["b"] == 2)
        await bench.pool.close()
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, WarrenError)
        with pytest.raises(WarrenError, match="this worker has stopped its agents"):
            await bench.use()
        with pytest.raises(WarrenError, match="this worker has stopped its agents"):
            await bench.use(None, "f")

    async def test_a_lease_that_outlives_the_pool_changes_nothing(self, bench: Bench) -> None:
        async with bench.lease():
            await bench.pool.close()
            assert len(bench.pool) == 0
        assert len(bench.pool) == 0

    async def test_a_start_whose_task_is_cancelled_goes_on_for_the_next_one(self, make: Any) -> None:
        bench, gate = make(start_timeout=30), asyncio.Event()
        bench.acts["start"] = gate.wait
        gone = asyncio.create_task(bench.use())
        await eventually(lambda: bench.made)
        gone.cancel()
        await asyncio.wait({gone})
        assert bench.pool.waiting().total() == 0
        gate.set()
        await bench.at_rest()
        assert await bench.use() is bench.made[0]
