"""Lifecycle of agents: start, check and stop, each with an enforced time limit."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from pydantic import JsonValue

from warren.agents.isolation import GRACE, Isolation
from warren.settings import Settings
from warren.support.failure import Failure
from warren.worker.pool.members import Member
from warren_schemas import State

log = structlog.get_logger(__name__)


class Lives:
    """Starts, checks and stops the agents of a pool, and publishes events about them.

    Errors of an agent are returned, not raised. `tell` is `Events.tell`.
    """

    def __init__(self, settings: Settings, tell: Callable[..., None], isolation: Isolation) -> None:
        self._settings, self._tell, self._isolation = settings, tell, isolation
        self._work: set[asyncio.Task[None]] = set()
        self._stops: set[asyncio.Task[None]] = set()
        # A task can cause the start or stop of an agent, which must not see that task's context variables.
        self._context = contextvars.copy_context()

    @property
    def busy(self) -> int:
        """The number of agents that are being started, checked or stopped."""
        return len(self._work) + len(self._stops)

    async def start(self, member: Member) -> BaseException | None:
        """Make the member's agent and start it. Returns the error, if any; then it must still be stopped."""

        async def begin() -> None:
            member.agent = member.spec.factory()
            await member.agent.start()

        error = await self._within(begin, self._settings.start_timeout, "start", member)
        if error is not None:
            log.warning("agent.start_failed", **fields_of(member), error=Failure.of(error).message)
        return error

    async def check(self, member: Member) -> BaseException | None:
        """Run the health check of a member's agent. Returns the error, or None if the agent is healthy."""
        assert member.agent is not None
        return await self._within(member.agent.check, self._settings.check_timeout, "check", member)

    async def stop(self, member: Member) -> BaseException | None:
        """Stop the member's agent, if it has one. Returns the error, if any.

        If the caller is cancelled, the stop still runs to its end.
        """
        agent, member.agent = member.agent, None
        if agent is None:
            return None
        errors: list[BaseException] = []

        async def end() -> None:
            error = await self._within(agent.stop, self._settings.stop_timeout, "stop", member)
            if error is not None:
                log.warning("agent.stop_failed", **fields_of(member), error=Failure.of(error).message)
                errors.append(error)

        await asyncio.wait({self._keep(self._stops, end(), member)})
        return errors[0] if errors else None

    def in_background(self, work: Coroutine[Any, Any, None], member: Member) -> None:
        """Run work on a member in the background. `cut_off` cancels it."""
        self._keep(self._work, work, member)

    def until_stopped(self, work: Coroutine[Any, Any, None], member: Member) -> None:
        """Run work on a member in the background, to its end: `cut_off` does not cancel it."""
        self._keep(self._stops, work, member)

    async def cut_off(self) -> None:
        """Cancel starts and checks."""
        while self._work:
            for task in tuple(self._work):
                task.cancel()
            await asyncio.wait(tuple(self._work))

    async def stopped(self) -> None:
        """Wait until every stop has ended. Each has a time limit."""
        while self._stops:
            await asyncio.wait(tuple(self._stops))

    def tell(
        self, member: Member, state: State, previous: State | None = None, error: BaseException | None = None
    ) -> None:
        """Publish a health event of the member."""
        details: dict[str, JsonValue] = {
            "user_id": member.user_id,
            "agent_id": member.number,
            "failures": member.failures,
        }
        reason = None
        if error is not None:
            failure = Failure.of(error)
            details |= {"error": failure.error_type, "message": failure.message}
            reason = f"{failure.error_type}: {failure.message}"[:200]
        say = log.warning if state == "unhealthy" else log.info
        say("agent.changed", **fields_of(member), state=state, previous=previous, reason=reason)
        self._tell("agent", member.spec.agent_type, state, previous=previous, reason=reason, details=details)

    async def _within(
        self, method: Callable[[], Awaitable[None]], seconds: float, what: str, member: Member
    ) -> BaseException | None:
        """Run one of the agent's methods within `seconds`. Returns the error, if any."""
        agent_type = member.spec.agent_type
        ended = await self._isolation.call(
            method,
            seconds,
            lambda: fields_of(member) | {"method": what},
            name=f"{what} {agent_type}",
            grace=GRACE,
        )
        if ended.is_late:
            return TimeoutError(f"{what}() of agent {agent_type!r} took over {seconds:g} s")
        return ended.error

    def _keep(
        self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], member: Member
    ) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("pool.failed", **fields_of(member), exc_info=error)

        name = f"agent {member.spec.agent_type}"
        task = asyncio.create_task(work, name=name, context=self._context.copy())
        tasks.add(task)
        task.add_done_callback(ended)
        return task


def fields_of(member: Member) -> dict[str, JsonValue]:
    """The fields of a log line about a member."""
    return {"agent_type": member.spec.agent_type, "user_id": member.user_id, "agent_id": member.number}
