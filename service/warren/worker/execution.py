"""One task, one agent, one outcome. Knows neither broker nor database.

The first attempt runs as it is; only when it fails does tenacity's machinery come into play. An attempt
needs a permit of the agent's valve: without one the task is released, and so are tasks whose attempt
fails while the valve is not closed, because such a failure is the outage's and not the task's.
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
    """One attempt that failed and may be made again."""

    error: BaseException
    at: datetime


class ResultInvalid(WarrenError):
    """What the agent returned does not fit its annotation, is no JSON, or is too large."""


def retry_delay(failures: int, settings: Settings) -> float:
    """Seconds to wait after so many failures: exponential with full jitter.

    Source: *Exponential Backoff And Jitter*, AWS Architecture Blog.
    """
    ceiling = settings.retry_initial_delay * settings.retry_multiplier ** min(failures - 1, 64)
    return random.uniform(0, min(ceiling, settings.retry_max_delay))  # noqa: S311 - no secret hangs on it


@dataclass(slots=True)
class Execution:
    """The run of one task by its agent; `run` gives the outcome, whatever happens.

    `attempts` starts with the attempts that the task has already used up. `on_retry(attempts, error,
    seconds)` is told before each wait. `can_wait_outside` says that there is a store: waits over `hold_limit`
    are spent there. `attempting` is true while an agent runs: otherwise the task only waits, perhaps for an
    agent of the pool, and may be cancelled at shutdown at once. `times` takes what the attempts took;
    `span(number)` is around each. `body` is the JSON that the task was read from.
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
        """Run the agent until it succeeds, is exhausted, or must be released.

        Cancelled, it gives `Released` with no attempt counted for what was cut short. An agent runs in a task
        of its own (`isolation`), so that a CancelledError in this one was asked for by the worker.
        """
        try:
            return await self._run()
        except asyncio.CancelledError:
            return Released(self.attempts, tried=self._tried, probe=False, reason=SHUTDOWN)
        finally:
            forget_cancellations()  # dealt with: settling must not meet it again

    async def _run(self) -> Outcome:
        if (expired := self._expired()) is not None:
            return expired
        try:
            arguments = self.spec.arguments(self.task.payload, self.context, self.body)
        except ValidationError as error:
            # Without a traceback: the stack would show only ourselves.
            return self._dead("invalid", Failure.told("InvalidPayload", what_does_not_fit(error)))
        except BaseException as error:  # noqa: BLE001 - a validator of the user's may raise anything
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
        """Go on after a first failure: tenacity is handed that failure as its attempt one."""
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
            # Not the agent's: this worker was told to stop the task, or failed itself.
            self.valve.abandoned(permit)
            self.attempts -= 1
            raise
        finally:
            self.attempting = False
            self.context.end_attempt()
        self.valve.succeeded(permit)
        return Succeeded(result, self.attempts)

    def _renew_context(self, arguments: dict[str, Any]) -> None:
        """A context of its own for another attempt: a thread of the last one may still use that."""
        self.context = self.context.another()
        if self.spec.context_name is not None:
            arguments[self.spec.context_name] = self.context

    def _judge(self, permit: Permit, error: BaseException) -> Outcome | Failed:
        """What an attempt that raised comes to: only a real failure is the breaker's business."""
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
        """Call an agent of the pool within the task's time, and turn what it returns into JSON.

        The time begins when there is an agent: waiting for one, or starting it, uses up none of it.
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
        """Seconds that an attempt may take, and the error of one that takes longer: the smaller limit wins.

        A caller may ask for less than the operator allows, never for more.
        """
        allowed = self.spec.timeout or self.settings.task_timeout
        asked = self.task.timeout_s
        return (allowed, TimeoutError) if asked is None or asked >= allowed else (asked, CallerTimeout)

    def _note_wait(self) -> None:
        """A task is ready from when it was made, or from when it may run: that wait was asked for."""
        made = self.task.created_at
        if self.attempts == 1 and made is not None:
            ready = made if self.task.not_before is None else max(made, self.task.not_before)
            self.times.wait.observe(time.time() - ready.timestamp())

    def _as_json(self, value: Any) -> bytes:
        told = f"agent {self.spec.agent_type!r} returned {type(value).__name__}"
        try:
            result = self.spec.result.dump(value)
        except ValidationError as error:
            # Its own text can be a hundred megabytes, and may show what the model hides.
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
        """Back to the queue with the attempts that the task came with: an outage burns nobody's."""
        return Released(self._attempts_before, tried=self._tried, probe=probe, reason=BREAKER_OPEN)

    def _expired(self) -> Dead | None:
        expires_at = self.task.expires_at
        if expires_at is None or datetime.now(UTC) < expires_at:
            return None
        return self._dead("expired", Failure.told("Expired", f"expired at {expires_at.isoformat()}"))

    def _give_up(self, state: RetryCallState) -> Dead | RetryLater:
        """No retry here: the attempts are used up, or the next one is far away."""
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
    """The error that an attempt ended with. One that only tells of the cancellation at its end is a time-out.

    Raised late, an error of the agent's own is kept, unless its caller cut it short (`exceeded` is
    CallerTimeout): then an agent may fail in any way, and that is the caller's failure too.
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
