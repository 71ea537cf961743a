"""Execution of one task by one agent, with retries. It knows neither broker nor database.

tenacity drives the retries, and is used only after the first attempt has failed. Each attempt needs a permit
of the agent's valve (circuit breaker). Without a permit the task is released. A task is also released if its
attempt fails while the valve is not closed, because such a failure counts for the outage, not for the task.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from warren.agents.app import AgentSpec
from warren.agents.base import Agent
from warren.agents.context import Context
from warren.agents.isolation import Ended
from warren.errors import CallerTimeout, FenceLost, Reject, RetryAfter, WarrenError
from warren.settings import Settings
from warren.support.failure import (
    AgentRaised,
    Failure,
    is_only,
    meaning_of,
    says_nothing_of_the_agent,
    what_does_not_fit,
)
from warren.support.histogram import Times
from warren.support.loops import forget_cancellations
from warren.worker.breaker import Permit, Valve
from warren.worker.outcome import (
    BREAKER_OPEN,
    SHUTDOWN,
    Dead,
    Outcome,
    Released,
    RetryLater,
    Succeeded,
    Superseded,
)
from warren.worker.pool.pool import Pool
from warren_schemas import Reason, Task


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed attempt that may be retried."""

    error: BaseException
    at: datetime


class ResultInvalid(WarrenError):
    """The agent's return value does not fit its annotation, is not JSON, or is too large."""


def retry_delay(failures: int, settings: Settings) -> float:
    """Seconds to wait after so many failures: exponential backoff with full jitter.

    Source: *Exponential Backoff And Jitter*, AWS Architecture Blog.
    """
    ceiling = settings.retry_initial_delay * settings.retry_multiplier ** min(failures - 1, 64)
    return random.uniform(0, min(ceiling, settings.retry_max_delay))  # noqa: S311 - no secret hangs on it


@dataclass(slots=True)
class Execution:
    """The run of one task by its agent. `run` returns an outcome in every case.

    `attempts` starts with the attempts that the task has already used. `on_retry(attempts, error, seconds)`
    is called before each wait. `can_wait_outside`: there is a store, where waits over `hold_limit` are spent.
    `attempting` is true while an agent runs; otherwise the task only waits, and may be cancelled at shutdown
    at once. `times` measures the attempts; `span(number)` surrounds each. `body` is the JSON of the task.
    """

    task: Task
    spec: AgentSpec
    valve: Valve
    pool: Pool
    settings: Settings
    context: Context
    attempts: int
    on_retry: Callable[[int, Failure, float], None]
    can_wait_outside: bool = False
    attempting: bool = False
    times: Times = field(default_factory=Times)
    span: Callable[[int], AbstractContextManager[object]] = nullcontext
    body: bytes | None = None
    _attempts_before: int = field(init=False)
    _first_failed_at: datetime | None = field(default=None, init=False)
    _tried: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._attempts_before = self.attempts

    async def run(self) -> Outcome:
        """Run the agent until the task succeeds, is exhausted, or must be released.

        If cancelled, it returns `Released` and does not count the interrupted attempt. An agent runs in an
        asyncio task of its own (`isolation`), so a CancelledError here always comes from the worker.
        """
        try:
            return await self._run()
        except asyncio.CancelledError:
            return Released(self.attempts, tried=self._tried, probe=False, reason=SHUTDOWN)
        finally:
            forget_cancellations()  # it was handled: settling must not be cancelled by it

    async def _run(self) -> Outcome:
        if (expired := self._expired()) is not None:
            return expired
        try:
            arguments = self.spec.arguments(self.task.payload, self.context, self.body)
        except ValidationError as error:
            # Without a traceback: the stack has only Warren's own frames.
            return self._dead("invalid", Failure.told("InvalidPayload", what_does_not_fit(error)))
        except BaseException as error:  # noqa: BLE001 - a user's validator may raise anything
            return self._dead("invalid", Failure.of(error))
        if self.task.not_before is not None and (seconds := _seconds_until(self.task.not_before)) > 0:
            self.valve.pass_by()
            if self._is_long(seconds):
                return RetryLater(self.task.not_before.timestamp(), self.attempts)
            await asyncio.sleep(seconds)
        first = await self._attempt(arguments)
        if not isinstance(first, Failed):
            return first
        return await self._retry(arguments, first)

    async def _retry(self, arguments: dict[str, Any], first: Failed) -> Outcome:
        """Retry after a first failure. tenacity gets that failure as its first attempt."""
        waiting_results = [first]

        async def attempt() -> Outcome | Failed:
            return waiting_results.pop() if waiting_results else await self._attempt(arguments)

        retrying = AsyncRetrying(
            retry=retry_if_result(lambda result: isinstance(result, Failed)),
            stop=lambda state: self._is_exhausted or self._is_long(state.upcoming_sleep),
            wait=self._delay,
            before_sleep=self._tell_retry,
            sleep=asyncio.sleep,
            retry_error_callback=self._give_up,
        )
        outcome: Outcome = await retrying(attempt)
        return outcome

    async def _attempt(self, arguments: dict[str, Any]) -> Outcome | Failed:
        """Make one attempt, if the valve permits it."""
        if (expired := self._expired()) is not None:
            return expired
        permit = self.valve.take()
        if permit is None:
            return self._outage(probe=False)
        self.attempts += 1
        if self._tried:
            self._renew_context(arguments)
        self.context.begin_attempt(self.attempts)
        try:
            with self.span(self.attempts):
                result = await self._call(arguments)
        except AgentRaised as raised:
            return self._judge(permit, raised.error)
        except (Exception, asyncio.CancelledError):
            # Not the agent's error: the worker stopped the task, or failed itself.
            self.valve.abandoned(permit)
            self.attempts -= 1
            raise
        finally:
            self.attempting = False
            self.context.end_attempt()
        self.valve.succeeded(permit)
        return Succeeded(result, self.attempts)

    def _renew_context(self, arguments: dict[str, Any]) -> None:
        """Make a new context for the next attempt: a thread of the last attempt may still use the old one."""
        self.context = self.context.another()
        if self.spec.context_name is not None:
            arguments[self.spec.context_name] = self.context

    def _judge(self, permit: Permit, error: BaseException) -> Outcome | Failed:
        """The outcome of an attempt that raised an error. Only real failures count for the breaker."""
        self._tried = True
        error = meaning_of(error)
        if isinstance(error, FenceLost):
            self.valve.abandoned(permit)
            return Superseded()
        if isinstance(error, Reject):
            self.valve.abandoned(permit)
            return self._dead("rejected", Failure.of(error))
        if isinstance(error, CallerTimeout):
            self.valve.abandoned(permit)
            return self._failed(TimeoutError(str(error)).with_traceback(error.__traceback__))
        if isinstance(error, RetryAfter):
            self.valve.abandoned(permit)
        elif self.valve.failed(permit, error):
            return self._outage(probe=permit.probe)
        return self._failed(error)

    async def _call(self, arguments: dict[str, Any]) -> bytes:
        """Call an agent of the pool within the time limit, and turn its return value into JSON.

        The limit starts when an agent is available: waiting for an agent, or starting it, does not count.
        """
        seconds, exceeded = self._limit()
        lease = self.pool.lease(self.spec, self.task.user_id)
        async with lease as agent:
            self.attempting = True
            self._note_wait()
            started = time.perf_counter()
            try:
                ended = await lease.call(partial(self._result_of, agent, arguments), seconds)
            finally:
                self.times.run.observe(time.perf_counter() - started)
            if (error := _error_of(ended, seconds, exceeded)) is not None:
                raise AgentRaised(error)
            result: bytes = ended.value
            return result

    async def _result_of(self, agent: Agent, arguments: dict[str, Any]) -> bytes:
        return self._as_json(await agent.run(**arguments))

    def _limit(self) -> tuple[float, type[TimeoutError]]:
        """The time limit of an attempt in seconds, and the error for exceeding it. The smaller limit counts.

        A caller may ask for less time than the operator allows, never for more.
        """
        allowed = self.spec.timeout or self.settings.task_timeout
        asked = self.task.timeout_s
        return (allowed, TimeoutError) if asked is None or asked >= allowed else (asked, CallerTimeout)

    def _note_wait(self) -> None:
        """Record the wait of a task from its creation, or from its `not_before` if that is later."""
        made = self.task.created_at
        if self.attempts == 1 and made is not None:
            ready = made if self.task.not_before is None else max(made, self.task.not_before)
            self.times.wait.observe(time.time() - ready.timestamp())

    def _as_json(self, value: Any) -> bytes:
        told = f"agent {self.spec.agent_type!r} returned {type(value).__name__}"
        try:
            result = self.spec.result.dump(value)
        except ValidationError as error:
            # The error's own text can have a hundred megabytes, and may show values that the model hides.
            raise ResultInvalid(f"{told}: {what_does_not_fit(error)}") from None
        except ValueError as error:  # PydanticSerializationError is one
            raise ResultInvalid(f"{told}: {error}") from error
        if len(result) > self.settings.max_result_bytes:
            raise ResultInvalid(
                f"agent {self.spec.agent_type!r} returned {len(result)} bytes of JSON; "
                f"max_result_bytes is {self.settings.max_result_bytes}: store it elsewhere and return where"
            )
        return result

    @property
    def _is_exhausted(self) -> bool:
        retries = self.settings.retries if self.spec.retries is None else self.spec.retries
        return self.attempts > retries

    def _is_long(self, seconds: float) -> bool:
        return self.can_wait_outside and seconds > self.settings.hold_limit

    def _delay(self, state: RetryCallState) -> float:
        error = _failed_of(state).error
        return error.seconds if isinstance(error, RetryAfter) else retry_delay(self.attempts, self.settings)

    def _tell_retry(self, state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0.0
        self.on_retry(self.attempts, Failure.of(_failed_of(state).error), seconds)

    def _failed(self, error: BaseException) -> Failed:
        now = datetime.now(UTC)
        self._first_failed_at = self._first_failed_at or now
        return Failed(error, now)

    def _outage(self, *, probe: bool) -> Released:
        """Release the task with the attempts that it came with: an outage uses up no attempts."""
        return Released(self._attempts_before, tried=self._tried, probe=probe, reason=BREAKER_OPEN)

    def _expired(self) -> Dead | None:
        expires_at = self.task.expires_at
        if expires_at is None or datetime.now(UTC) < expires_at:
            return None
        return self._dead("expired", Failure.told("Expired", f"expired at {expires_at.isoformat()}"))

    def _give_up(self, state: RetryCallState) -> Dead | RetryLater:
        """End without a retry here: the attempts are used up, or the next wait is long."""
        last = _failed_of(state)
        failure = Failure.of(last.error)
        if self._is_exhausted:
            return self._dead("exhausted", failure, last.at)
        seconds = state.upcoming_sleep
        self.on_retry(self.attempts, failure, seconds)
        first = self._first_failed_at or last.at
        return RetryLater(time.time() + seconds, self.attempts, failure, first, last.at)

    def _dead(self, reason: Reason, failure: Failure, at: datetime | None = None) -> Dead:
        last = at or datetime.now(UTC)
        return Dead(reason, failure, self.attempts, self._first_failed_at or last, last)


def _failed_of(state: RetryCallState) -> Failed:
    assert state.outcome is not None
    failed = state.outcome.result()
    assert isinstance(failed, Failed)
    return failed


def _seconds_until(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


def _error_of(ended: Ended, seconds: float, exceeded: type[TimeoutError]) -> BaseException | None:
    """The error of an attempt, or None. After the time limit, a mere cancellation becomes a time-out.

    A late error of the agent's own is kept. But if the caller's limit was exceeded (`exceeded` is
    CallerTimeout), it becomes a time-out as well: the caller's short limit may make an agent fail in any way.
    """
    if ended.is_stuck:
        return TimeoutError(
            f"no result within {seconds:g} s; the agent ignores its cancellation and still runs"
        )
    if not ended.is_late or ended.error is None:
        return ended.error
    keeps_its_own = exceeded is TimeoutError or says_nothing_of_the_agent(ended.error)
    if keeps_its_own and not is_only(ended.error, asyncio.CancelledError, TimeoutError):
        return ended.error
    error = exceeded(f"no result within {seconds:g} s")
    error.__cause__ = ended.error
    return error
