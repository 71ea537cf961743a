"""One task, one agent, one outcome: without a broker."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import pytest
from pydantic import BeforeValidator
from structlog.testing import capture_logs

from tests.memories import forgetful
from tests.rig import eventually
from warren import Agent, BlockingContext, Context, Reject, RetryAfter, Settings, Warren
from warren.errors import AttemptOver, FenceLost, StepError
from warren.support.failure import Failure
from warren.worker.breaker import Valve
from warren.worker.execution import Execution, retry_delay
from warren.worker.outcome import BREAKER_OPEN, SHUTDOWN, Dead, Outcome, Released, Succeeded, Superseded
from warren.worker.pool.pool import Pool
from warren_schemas import Task

SETTINGS = Settings(retry_initial_delay=0, retry_max_delay=0, breaker_reset_timeout=600)
Retry = tuple[int, str, float]


class Bench:
    """Agents with a valve of their own, and what was told about retries."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings, self.app = settings, Warren()
        self.retries: list[Retry] = []
        self.valve = Valve(
            "a",
            fail_max=settings.breaker_fail_max,
            reset_timeout=settings.breaker_reset_timeout,
            on_change=lambda *_: None,
            on_spare=lambda: None,
        )
        self.pool = Pool(settings, lambda *_, **__: None)

    def prepare(self, payload: Any = None, *, attempts: int = 0, **fields: Any) -> Execution:
        """An execution of the agent `a`."""
        task = Task.model_validate(
            {"version": 1, "task_id": uuid4(), "agent_type": "a", "payload": payload, **fields}
        )

        def told(attempt: int, failure: Failure, seconds: float) -> None:
            self.retries.append((attempt, failure.error_type, seconds))

        context = Context(task, lambda *_: None, forgetful(task))
        return Execution(
            task, self.app.agents["a"], self.valve, self.pool, self.settings, context, attempts, told
        )

    async def run(self, payload: Any = None, *, attempts: int = 0, **fields: Any) -> Outcome:
        """Run the agent `a` once through."""
        return await self.prepare(payload, attempts=attempts, **fields).run()

    def open(self) -> None:
        """Open the valve."""
        while (permit := self.valve.take()) is not None:
            self.valve.failed(permit, ConnectionError())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.valve.close()


def failing(bench: Bench, error: BaseException, times: int = 100, **options: Any) -> list[int]:
    """Register an agent that raises so many times; its attempts are written into the list."""
    attempts: list[int] = []

    @bench.app.agent("a", **options)
    async def agent(_payload: Any, ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) <= times:
            raise error
        return "done"

    return attempts


async def cancelled(execution: Execution, when: Callable[[], bool]) -> Outcome:
    """The outcome of an execution that is cancelled once the condition is true."""
    running = asyncio.create_task(execution.run())
    await eventually(when)
    running.cancel()
    outcome = await running
    assert running.cancelling() == 0, "the cancellation is dealt with: settling must not meet it again"
    return outcome


class TestSuccess:
    async def test_its_result_is_json(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(number: int) -> dict[str, float]:
            return {"half": number / 2}

        assert await bench.run(3) == Succeeded(b'{"half":1.5}', attempts=1)

    async def test_it_ends_the_row_of_failures(self, bench: Bench) -> None:
        failing(bench, ConnectionError(), times=2)
        assert await bench.run() == Succeeded(b'"done"', attempts=3)
        assert bench.valve.failures == 0

    @pytest.mark.parametrize("value", [object(), float, "x" * 100, "\ud800"])
    async def test_a_result_that_cannot_be_sent_is_a_failure(self, value: Any) -> None:
        bench = Bench(Settings(retries=0, max_result_bytes=50))

        @bench.app.agent("a")
        async def agent(_payload: None) -> Any:
            return value

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.failure.error_type) == ("exhausted", "ResultInvalid")

    async def test_a_result_that_does_not_fit_its_annotation_is_a_failure(self, bench: Bench) -> None:
        @bench.app.agent("a", retries=0)
        async def agent(_payload: None) -> int:
            return "one"  # type: ignore[return-value]

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.failure.error_type == "ResultInvalid"


class TestRetries:
    async def test_each_is_told_with_its_wait(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError("no"), times=2)
        assert await bench.run() == Succeeded(b'"done"', attempts=3)
        assert attempts == [1, 2, 3]
        assert bench.retries == [(1, "ValueError", 0.0), (2, "ValueError", 0.0)]

    async def test_the_fourth_failure_is_the_last(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError("no way"))
        outcome = await bench.run()
        assert attempts == [1, 2, 3, 4]
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts) == ("exhausted", 4)
        assert (outcome.failure.error_type, outcome.failure.message) == ("ValueError", "no way")
        assert outcome.first_failed_at < outcome.last_failed_at

    async def test_earlier_attempts_count(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError("no"))
        outcome = await bench.run(attempts=2)
        assert attempts == [3, 4]
        assert isinstance(outcome, Dead)
        assert outcome.attempts == 4

    async def test_an_agent_s_own_number_wins(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError("no"), retries=1)
        await bench.run()
        assert attempts == [1, 2]

    async def test_the_agent_says_how_long_to_wait(self, bench: Bench) -> None:
        attempts = failing(bench, RetryAfter(0.001), times=1)
        assert await bench.run() == Succeeded(b'"done"', attempts=2)
        assert attempts == [1, 2]
        assert bench.retries == [(1, "RetryAfter", 0.001)]

    async def test_asking_to_wait_is_no_failure_of_the_agent(self, bench: Bench) -> None:
        failing(bench, RetryAfter(0), retries=10)
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.attempts == 11
        assert (bench.valve.state, bench.valve.failures) == ("closed", 0)

    async def test_fifty_at_once_do_not_share_their_state(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(number: int, ctx: Context) -> list[int]:
            await asyncio.sleep(0)
            if ctx.attempt <= number % 4:
                raise RetryAfter(0)  # the valve must not open here
            return [number, ctx.attempt]

        outcomes = await asyncio.gather(*(bench.run(number) for number in range(50)))
        expected = [
            Succeeded(f"[{number},{number % 4 + 1}]".encode(), number % 4 + 1) for number in range(50)
        ]
        assert outcomes == expected

    @pytest.mark.parametrize(("failures", "ceiling"), [(1, 0.5), (2, 1), (3, 2), (7, 30), (10_000, 30)])
    def test_the_waits_grow_up_to_a_ceiling_with_full_jitter(self, failures: int, ceiling: float) -> None:
        waits = [retry_delay(failures, Settings()) for _ in range(400)]
        assert 0 <= min(waits) < ceiling * 0.1
        assert ceiling * 0.9 < max(waits) <= ceiling


class TestDeadAtOnce:
    async def test_a_payload_that_does_not_fit(self, bench: Bench) -> None:
        runs: list[int] = []

        @bench.app.agent("a")
        async def agent(number: int) -> None:
            runs.append(number)

        outcome = await bench.run("seven")
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts) == ("invalid", 0)
        assert "valid integer" in outcome.failure.message
        assert runs == []

    async def test_rejected(self, bench: Bench) -> None:
        attempts = failing(bench, Reject("not for me"))
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts) == ("rejected", 1)
        assert outcome.failure.message == "not for me"
        assert attempts == [1]
        assert bench.valve.failures == 0

    async def test_expired_before_it_ran(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError())
        outcome = await bench.run(expires_at=datetime.now(UTC))
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts) == ("expired", 0)
        assert attempts == []

    async def test_expired_while_it_waited_for_its_next_attempt(self, bench: Bench) -> None:
        attempts = failing(bench, RetryAfter(0.1))
        outcome = await bench.run(expires_at=datetime.now(UTC) + timedelta(seconds=0.05))
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts) == ("expired", 1)
        assert attempts == [1]


class TestTime:
    @pytest.mark.parametrize(
        ("of_the_task", "of_the_agent", "of_the_settings"),
        [(0.01, 60, 60), (None, 0.01, 60), (None, None, 0.01), (3600, 0.01, 60), (3600, None, 0.01)],
    )
    async def test_the_nearest_timeout_wins(
        self, of_the_task: float | None, of_the_agent: float | None, of_the_settings: float
    ) -> None:
        bench = Bench(Settings(retries=0, task_timeout=of_the_settings))

        @bench.app.agent("a", timeout=of_the_agent)
        async def agent(_payload: None) -> None:
            await asyncio.Event().wait()

        outcome = await bench.run(timeout_s=of_the_task)
        assert isinstance(outcome, Dead)
        assert (outcome.failure.error_type, outcome.failure.message) == (
            "TimeoutError",
            "no result within 0.01 s",
        )
        assert bench.valve.failures == (0 if of_the_task == 0.01 else 1)

    @pytest.mark.parametrize("cleanup_fails", [False, True])
    async def test_a_timeout_that_the_caller_chose_is_not_the_agent_s_failure(
        self, cleanup_fails: bool
    ) -> None:
        settings = Settings(retries=0, breaker_fail_max=2, unhealthy_after=2)
        bench = Bench(settings)

        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                if cleanup_fails:
                    raise ValueError("half a page")

        for _ in range(5):
            outcome = await bench.run(timeout_s=0.01)
            assert isinstance(outcome, Dead)
            assert outcome.failure.error_type == "TimeoutError"
            assert outcome.failure.message == "no result within 0.01 s"
        assert (bench.valve.state, bench.valve.failures) == ("closed", 0)
        assert [(one.state, one.failures) for one in bench.pool._members] == [("idle", 0)]

    async def test_a_timeout_of_the_agent_s_own_keeps_its_words(self, bench: Bench) -> None:
        failing(bench, TimeoutError("the page did not load"), retries=0)
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.failure.message == "the page did not load"

    async def test_it_does_not_run_too_early(self, bench: Bench) -> None:
        ran_at: list[datetime] = []

        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            ran_at.append(datetime.now(UTC))

        not_before = datetime.now(UTC) + timedelta(seconds=0.05)
        await bench.run(not_before=not_before)
        assert ran_at[0] >= not_before - timedelta(milliseconds=2)  # the loop's clock is a coarse one


class TestWhateverAnAgentRaises:
    @pytest.mark.parametrize(
        "error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration()]
    )
    async def test_it_is_a_failure_like_any_other(self, bench: Bench, error: BaseException) -> None:
        attempts = failing(bench, error, retries=1)
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.reason == "exhausted"
        assert attempts == [1, 2]
        assert bench.valve.failures == 2

    async def test_even_from_a_thread(self, bench: Bench) -> None:
        @bench.app.agent("a", retries=0)
        def agent(_payload: None) -> None:
            raise SystemExit(3)

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.failure.error_type == "SystemExit"


async def leaves_its_cancellation_counted(_payload: None) -> None:
    """Catch a cancellation as careless code does, then fail."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    raise ValueError("broken")


async def fails_while_its_group_is_left(_payload: None) -> None:
    async def tool() -> None:
        raise ValueError("broken")

    async with asyncio.TaskGroup() as tools:
        tools.create_task(tool())  # Python 3.11 leaves `cancelling()` at 1 then


async def cancels_itself(_payload: None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


async def steps_and_fails_in_a_group(_payload: None, ctx: Context) -> None:
    async def tool() -> None:
        await ctx.step("tool", lambda: None)
        raise ValueError("broken")

    async with asyncio.TaskGroup() as tools:
        tools.create_task(tool())


def cancel(_value: Any) -> Any:
    """Validate nothing."""
    raise asyncio.CancelledError


def exit_at_once(_value: Any) -> Any:
    """Validate nothing."""
    raise SystemExit(1)


class TestCancellationsThatNobodyAskedFor:
    @pytest.mark.parametrize(
        ("careless", "told"),
        [
            (leaves_its_cancellation_counted, "ValueError"),
            (fails_while_its_group_is_left, "ExceptionGroup"),
            (cancels_itself, "CancelledError"),
            (steps_and_fails_in_a_group, "ExceptionGroup"),
        ],
    )
    async def test_they_are_failures_that_count(self, bench: Bench, careless: Any, told: str) -> None:
        bench.app.agent("a", retries=1)(careless)
        running = asyncio.create_task(bench.run())
        outcome = await running
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.attempts, outcome.failure.error_type) == ("exhausted", 2, told)
        assert bench.valve.failures == 2
        assert running.cancelling() == 0

    async def test_one_that_a_validator_throws_makes_the_payload_invalid(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(_payload: Annotated[Any, BeforeValidator(cancel)]) -> None: ...

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.failure.error_type) == ("invalid", "CancelledError")

    async def test_one_that_the_result_throws_is_a_failure(self, bench: Bench) -> None:
        @bench.app.agent("a", retries=0)
        async def agent(_payload: None) -> Annotated[Any, BeforeValidator(exit_at_once)]: ...

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.failure.error_type) == ("exhausted", "SystemExit")


class TestGroups:
    @pytest.mark.parametrize(
        "group",
        [
            ExceptionGroup("one", [Reject("not for me")]),
            ExceptionGroup("deep", [ExceptionGroup("one", [Reject("not for me")])]),
            ExceptionGroup("mixed", [ValueError("x"), RetryAfter(9), Reject("not for me")]),
            BaseExceptionGroup("base", [SystemExit(1), asyncio.CancelledError(), Reject("not for me")]),
        ],
    )
    async def test_a_reject_in_one_is_final(self, bench: Bench, group: BaseException) -> None:
        attempts = failing(bench, group)
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.failure.error_type) == ("rejected", "Reject")
        assert outcome.failure.message == "not for me"
        assert (attempts, bench.valve.failures) == ([1], 0)

    async def test_the_longest_wait_of_one_is_taken(self, bench: Bench) -> None:
        group = ExceptionGroup("busy", [RetryAfter(0.001), ValueError("x"), RetryAfter(0.002)])
        attempts = failing(bench, group, times=1)
        assert await bench.run() == Succeeded(b'"done"', attempts=2)
        assert attempts == [1, 2]
        assert bench.retries == [(1, "RetryAfter", 0.002)]

    async def test_a_run_that_was_overtaken_stops_whatever_else_failed(self, bench: Bench) -> None:
        failing(bench, ExceptionGroup("lost", [Reject("x"), FenceLost("taken over")]))
        assert await bench.run() == Superseded()

    async def test_any_other_is_a_failure_like_any(self, bench: Bench) -> None:
        failing(bench, BaseExceptionGroup("many", [SystemExit(1), ValueError("x")]), retries=0)
        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert (outcome.reason, outcome.failure.error_type) == ("exhausted", "BaseExceptionGroup")
        assert bench.valve.failures == 1


class TestStuck:
    """Agents that ignore their cancellation: in functions and classes."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Agent, "cancel_grace", 0.02)

    @pytest.fixture
    async def end(self) -> AsyncIterator[asyncio.Event]:
        """Ends those that are stuck."""
        end = asyncio.Event()
        yield end
        end.set()

    @staticmethod
    async def ignore_cancellation(end: asyncio.Event) -> None:
        while not end.is_set():
            with suppress(asyncio.CancelledError):
                await end.wait()

    async def test_its_time_out_ends_the_task_and_frees_its_place(
        self, bench: Bench, end: asyncio.Event
    ) -> None:
        @bench.app.agent("a", timeout=0.01, retries=0)
        async def agent(_payload: None) -> None:
            await self.ignore_cancellation(end)

        with capture_logs() as logs:
            outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.failure.error_type == "TimeoutError"
        assert "ignores its cancellation" in outcome.failure.message
        [told] = [entry for entry in logs if entry["event"] == "agent.stuck"]
        assert (told["agent_type"], told["method"], told["left_behind"]) == ("a", "run", 1)
        assert (len(bench.pool), bench.pool.isolation.left_behind) == (0, 1)
        end.set()
        await eventually(lambda: bench.pool.isolation.left_behind == 0)

    async def test_its_instance_serves_no_other_task_and_is_stopped(
        self, bench: Bench, end: asyncio.Event
    ) -> None:
        lives: list[str] = []

        @bench.app.agent("a", timeout=0.01, retries=1)
        class Stubborn(Agent):
            async def run(self, _payload: None, ctx: Context) -> str:
                lives.append("run")
                if ctx.attempt == 1:
                    await TestStuck.ignore_cancellation(end)
                return "done"

            async def stop(self) -> None:
                lives.append("stop")

        assert await bench.run() == Succeeded(b'"done"', attempts=2)
        await eventually(lambda: bench.pool.is_at_rest)
        assert sorted(lives) == ["run", "run", "stop"]
        assert len(bench.pool) == 1

    async def test_a_release_does_not_wait_for_it(self, bench: Bench, end: asyncio.Event) -> None:
        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            await self.ignore_cancellation(end)

        execution = bench.prepare()
        outcome = await cancelled(execution, lambda: execution.attempting)
        assert outcome == Released(attempts=0, tried=False, probe=False, reason=SHUTDOWN)
        assert bench.pool.isolation.left_behind == 1

    async def test_one_that_cleans_up_within_its_grace_is_not_left_behind(self, bench: Bench) -> None:
        cleaned = asyncio.Event()

        @bench.app.agent("a", timeout=0.01, retries=0)
        class Tidy(Agent):
            cancel_grace = 60

            async def run(self, _payload: None) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.1)
                    cleaned.set()

        outcome = await bench.run()
        assert isinstance(outcome, Dead)
        assert outcome.failure.message == "no result within 0.01 s"
        assert cleaned.is_set()
        assert (len(bench.pool), bench.pool.isolation.left_behind) == (1, 0)


class TestCancelled:
    async def test_the_attempt_that_was_cut_short_does_not_count(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            await asyncio.Event().wait()

        execution = bench.prepare(attempts=1)
        outcome = await cancelled(execution, lambda: execution.attempting)
        assert outcome == Released(attempts=1, tried=False, probe=False, reason=SHUTDOWN)
        assert bench.valve.failures == 0

    async def test_an_agent_that_answers_with_an_error_is_released_all_the_same(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("disturbed")

        execution = bench.prepare()
        outcome = await cancelled(execution, lambda: execution.attempting)
        assert outcome == Released(attempts=0, tried=False, probe=False, reason=SHUTDOWN)
        assert bench.valve.failures == 0

    async def test_while_it_waits_the_attempts_so_far_count(self, bench: Bench) -> None:
        failing(bench, RetryAfter(3600))
        execution = bench.prepare()
        outcome = await cancelled(execution, lambda: bool(bench.retries))
        assert outcome == Released(attempts=1, tried=True, probe=False, reason=SHUTDOWN)

    async def test_a_probe_gives_its_permit_back(self) -> None:
        bench = Bench(Settings(breaker_reset_timeout=0.001))

        @bench.app.agent("a")
        async def agent(_payload: None) -> None:
            await asyncio.Event().wait()

        bench.open()
        await eventually(lambda: bench.valve.state == "half_open")
        execution = bench.prepare()
        await cancelled(execution, lambda: execution.attempting)
        assert bench.valve.take() is not None


class TestOutage:
    async def test_an_open_valve_lets_nothing_run(self, bench: Bench) -> None:
        attempts = failing(bench, ValueError())
        bench.open()
        outcome = await bench.run(attempts=2)
        assert outcome == Released(attempts=2, tried=False, probe=False, reason=BREAKER_OPEN)
        assert attempts == []

    async def test_who_opens_the_valve_gets_his_attempts_back(self) -> None:
        bench = Bench(
            Settings(retry_initial_delay=0, retries=9, breaker_fail_max=3, breaker_reset_timeout=600)
        )
        attempts = failing(bench, ConnectionError())
        outcome = await bench.run(attempts=1)
        assert attempts == [2, 3, 4]
        assert outcome == Released(attempts=1, tried=True, probe=False, reason=BREAKER_OPEN)
        bench.valve.close()

    async def test_so_does_who_failed_before_and_comes_too_late(self, bench: Bench) -> None:
        failing(bench, RetryAfter(0.1))
        running = asyncio.create_task(bench.run())
        await eventually(lambda: bench.retries)
        bench.open()
        assert await running == Released(attempts=0, tried=True, probe=False, reason=BREAKER_OPEN)

    async def test_a_probe_that_fails_is_marked(self) -> None:
        bench = Bench(Settings(breaker_reset_timeout=0.001))
        attempts = failing(bench, ConnectionError())
        bench.open()
        await eventually(lambda: bench.valve.state == "half_open")
        assert await bench.run() == Released(attempts=0, tried=True, probe=True, reason=BREAKER_OPEN)
        assert attempts == [1]
        bench.valve.close()


class TestThread:
    async def test_a_plain_function_runs_in_one(self, bench: Bench) -> None:
        here: list[threading.Thread] = []

        @bench.app.agent("a")
        def agent(_payload: None) -> str:
            here.append(threading.current_thread())
            return "done"

        assert await bench.run() == Succeeded(b'"done"', attempts=1)
        assert here[0] is not threading.current_thread()
        assert here[0].daemon, "a call that never ends must not hold up the end of the process"

    async def test_context_variables_come_along(self, bench: Bench) -> None:
        variable = contextvars.ContextVar("variable", default="unset")

        @bench.app.agent("a")
        def agent(_payload: None) -> str:
            return variable.get()

        variable.set("of the caller")
        assert await bench.run() == Succeeded(b'"of the caller"', attempts=1)

    async def test_a_call_that_takes_too_long_is_left_behind(self, bench: Bench) -> None:
        end = threading.Event()

        @bench.app.agent("a", timeout=0.01, retries=0)
        def agent(_payload: None) -> None:
            end.wait(10)

        outcome = await bench.run()
        end.set()
        assert isinstance(outcome, Dead)
        assert outcome.failure.error_type == "TimeoutError"


class TestRememberingInAThread:
    async def test_a_step_and_a_checkpoint_block(self, bench: Bench) -> None:
        calls: list[threading.Thread] = []

        def double(number: int) -> int:
            calls.append(threading.current_thread())
            return 2 * number

        async def on_the_loop() -> str:
            await asyncio.sleep(0)
            return threading.current_thread().name

        @bench.app.agent("a")
        def agent(number: int, ctx: BlockingContext) -> list[Any]:
            doubled = ctx.step("double", double, number)
            ctx.checkpoint({"doubled": doubled})
            thread = ctx.step("loop", on_the_loop)
            if ctx.attempt == 1:
                raise RetryAfter(0)
            assert calls[0] is not threading.current_thread()
            return [doubled, ctx.state, thread]

        execution = bench.prepare(21)
        here = threading.current_thread().name
        assert await execution.run() == Succeeded(f'[42,{{"doubled":42}},"{here}"]'.encode(), attempts=2)
        assert len(calls) == 1
        assert calls[0] is not threading.current_thread()

    async def test_an_annotation_of_the_other_context_does_as_well(self, bench: Bench) -> None:
        @bench.app.agent("a")
        def agent(_payload: None, ctx: Context) -> Any:
            return ctx.step("one", lambda: 1)

        assert await bench.run() == Succeeded(b"1", attempts=1)

    async def test_an_event_loop_of_the_agents_own_awaits_them(self, bench: Bench) -> None:
        @bench.app.agent("a")
        def agent(_payload: None, ctx: Context) -> Any:
            async def main() -> Any:
                await ctx.checkpoint("there")
                return [await ctx.step("one", asyncio.sleep, 0, "one"), ctx.state]

            return asyncio.run(main())

        assert await bench.run() == Succeeded(b'["one","there"]', attempts=1)

    async def test_a_helper_thread_of_an_async_agent_blocks(self, bench: Bench) -> None:
        @bench.app.agent("a")
        async def agent(_payload: None, ctx: BlockingContext) -> Any:
            return await asyncio.to_thread(lambda: ctx.step("one", lambda: 1))

        assert await bench.run() == Succeeded(b"1", attempts=1)

    @pytest.mark.parametrize("error", [StepError("no"), FenceLost("taken over"), SystemExit(1), KeyError()])
    async def test_what_a_step_raises_is_raised_in_the_thread(
        self, bench: Bench, error: BaseException
    ) -> None:
        async def step() -> None:
            raise error

        @bench.app.agent("a")
        def agent(_payload: None, ctx: BlockingContext) -> str:
            try:
                ctx.step("one", step)
            except BaseException as raised:
                return type(raised).__name__
            return "nothing"

        assert await bench.run() == Succeeded(f'"{type(error).__name__}"'.encode(), attempts=1)

    async def test_a_name_used_twice_and_no_json_are_step_errors(self, bench: Bench) -> None:
        @bench.app.agent("a", retries=0)
        def agent(what: str, ctx: BlockingContext) -> None:
            ctx.step("one", object if what == "json" else int)
            ctx.step("one", int)

        for what in ("json", "twice"):
            outcome = await bench.run(what)
            assert isinstance(outcome, Dead)
            assert outcome.failure.error_type == "StepError"

    async def test_a_thread_of_an_attempt_that_is_over_remembers_nothing(self, bench: Bench) -> None:
        go_on, told = threading.Event(), list[str]()

        @bench.app.agent("a", timeout=0.05, retries=0)
        def agent(_payload: None, ctx: BlockingContext) -> None:
            go_on.wait(60)
            for act in (lambda: ctx.step("late", int), lambda: ctx.checkpoint("late")):
                try:
                    act()
                except AttemptOver as over:
                    told.append(str(over))

        execution = bench.prepare()
        assert isinstance(await execution.run(), Dead)
        go_on.set()
        await eventually(lambda: len(told) == 2)
        assert execution.context.state is None
