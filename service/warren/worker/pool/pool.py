"""Agent pool: lends an agent to one task at a time. An agent never serves two users.

A lease takes an idle agent of its type and user, or else a new one, or else the place of another idle agent.
A lease that can be met at once does not wait. The others wait in line. Each change of the pool serves that
line from the oldest lease on, so no lease starves, and a lease that cannot be met does not block the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any

from warren.agents.app import AgentSpec
from warren.agents.base import Agent
from warren.agents.isolation import Ended, Isolation
from warren.errors import WarrenError
from warren.settings import Settings
from warren.support.failure import AgentRaised, says_nothing_of_the_agent
from warren.worker.pool.lifecycle import Lives, fields_of
from warren.worker.pool.members import Member, Members


@dataclass(slots=True, eq=False)
class _Waiter:
    """A waiting lease. `starting` is an agent being started for it, `stopping` one that makes room for it."""

    spec: AgentSpec
    user_id: str
    key: tuple[str, str]
    given: asyncio.Future[Member] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    starting: Member | None = None
    stopping: Member | None = None


class Lease:
    """The loan of an agent for one attempt, an async context manager. An exception may count as a failure.

    On entry it raises AgentRaised with the error of the agent's `start`, or a TimeoutError in its place.
    """

    __slots__ = ("_is_stuck", "_member", "_pool", "_spec", "_user_id")

    def __init__(self, pool: Pool, spec: AgentSpec, user_id: str) -> None:
        self._pool, self._spec, self._user_id = pool, spec, user_id
        self._is_stuck = False

    async def __aenter__(self) -> Agent:
        member = self._pool.take(self._spec, self._user_id)
        if member is None:
            member = await self._pool.wait(self._spec, self._user_id)
        self._member = member
        assert member.agent is not None
        return member.agent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_stuck:
            self._pool.give_up(self._member)
        else:
            self._pool.give_back(self._member, error)

    async def call(self, function: Callable[[], Awaitable[Any]], seconds: float) -> Ended:
        """Call the agent's function for the attempt, within `seconds`; see `Isolation.call`."""
        agent = self._member.agent
        assert agent is not None
        return await self._pool.isolation.call(
            function, seconds, self._stuck, name=f"run {self._spec.agent_type}", grace=agent.cancel_grace
        )

    def _stuck(self) -> dict[str, Any]:
        self._is_stuck = True
        return fields_of(self._member) | {"method": "run"}


class Pool:
    """The agents of one worker. `tell` publishes events, as `Events.tell` does.

    `recover` and `retire` are loops that the worker runs. `close` stops every agent.
    """

    def __init__(self, settings: Settings, tell: Callable[..., None]) -> None:
        self._settings = settings
        self._members = Members(settings.max_agents, settings.max_agents_per_user)
        self.isolation = Isolation()
        self._lives = Lives(settings, tell, self.isolation)
        self._waiters: dict[_Waiter, None] = {}
        self._numbers = count(1)
        self._closed = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def is_at_rest(self) -> bool:
        """Whether no lease waits and no agent is being started, checked or stopped."""
        return not self._waiters and not self._lives.busy

    def counts(self) -> dict[str, Counter[str]]:
        """The number of agents by type and state."""
        return self._members.counts()

    def waiting(self) -> Counter[str]:
        """The number of waiting leases by agent type."""
        return Counter(waiter.spec.agent_type for waiter in self._waiters)

    # -- leases ---------------------------------------------------------------------------------------

    def lease(self, spec: AgentSpec, user_id: str) -> Lease:
        """An agent of this type and user: `async with pool.lease(spec, user_id) as agent`."""
        return Lease(self, spec, user_id)

    def take(self, spec: AgentSpec, user_id: str) -> Member | None:
        """An agent that can run at once, or None."""
        member = self._members.take((spec.agent_type, user_id))
        if member is None and spec.is_stateless and self._members.has_room(user_id) and not self._closed:
            return self._new(spec, user_id)
        return member

    async def wait(self, spec: AgentSpec, user_id: str) -> Member:
        """Wait for an agent. Raises AgentRaised with the error of its start."""
        if self._closed:
            raise _closed()
        waiter = _Waiter(spec, user_id, (spec.agent_type, user_id))
        self._waiters[waiter] = None
        self._serve()
        try:
            return await waiter.given
        except asyncio.CancelledError:
            given = waiter.given
            if given.done() and not given.cancelled() and given.exception() is None:
                self._put_back(given.result())  # it was given at the moment of the cancellation
            raise
        finally:
            self._waiters.pop(waiter, None)

    def give_back(self, member: Member, error: BaseException | None) -> None:
        """Return an agent after its attempt, with the exception that the attempt raised, if any."""
        if member.state != "busy":
            return  # the pool was closed during the attempt
        if error is None:
            member.failures = 0
        elif (fault := _fault_of(error)) is not None:
            self._blame(member, fault)
            return
        self._put_back(member)

    def give_up(self, member: Member) -> None:
        """Discard an agent that still runs after its attempt. It is not lent again, and frees its place."""
        if member.state == "busy":
            self._stop(member)
            self._serve()

    def _put_back(self, member: Member) -> None:
        if member.state != "busy":
            return
        self._members.put_idle(member)
        if self._waiters:
            self._serve()

    def _blame(self, member: Member, error: BaseException) -> None:
        member.failures += 1
        if member.failures >= self._settings.unhealthy_after:
            self._members.put_unhealthy(member)
            self._lives.tell(member, "unhealthy", error=error)
        else:
            self._members.put_idle(member)
        if self._waiters:
            self._serve()

    # -- the line -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve the waiting leases as far as possible now, the oldest first."""
        if self._closed:
            return
        hopeless: set[str] = set()  # users for whom no place can be freed now
        for waiter in tuple(self._waiters):
            if waiter.given.done():  # cancelled, and about to leave the line
                continue
            if (member := self._members.take(waiter.key)) is not None:
                self._give(waiter, member)
            elif waiter.starting is None:
                self._provide(waiter, hopeless)

    def _give(self, waiter: _Waiter, member: Member) -> None:
        del self._waiters[waiter]
        waiter.given.set_result(member)

    def _provide(self, waiter: _Waiter, hopeless: set[str]) -> None:
        """Begin to start an agent, or to free a place for one."""
        if (cold := self._members.cold(waiter.key)) is not None:
            self._members.withdraw(cold)
            self._start(cold, waiter)
            return
        while not self._members.has_room(waiter.user_id):
            if waiter.user_id in hopeless or waiter.stopping in self._members:
                return
            spare = self._members.spare(waiter.user_id)
            if spare is None:
                hopeless.add(waiter.user_id)
                return
            waiter.stopping = spare
            self._stop(spare)
        member = self._new(waiter.spec, waiter.user_id)
        if member.state == "busy":
            self._give(waiter, member)
        else:
            self._start(member, waiter)

    def _new(self, spec: AgentSpec, user_id: str) -> Member:
        member = Member(spec, user_id, next(self._numbers), "starting")
        self._members.add(member)
        if spec.is_stateless:
            member.agent, member.state = spec.factory(), "busy"
        return member

    def _start(self, member: Member, waiter: _Waiter) -> None:
        member.state, waiter.starting = "starting", member
        self._lives.in_background(self._started(member, waiter), member)

    async def _started(self, member: Member, waiter: _Waiter) -> None:
        error = await self._lives.start(member)
        waiter.starting = None
        if error is not None:
            if not waiter.given.done():
                del self._waiters[waiter]
                waiter.given.set_exception(AgentRaised(error))
            await self._lives.stop(member)
            self._blame(member, error)
            return
        self._lives.tell(member, "started")
        member.state = "busy"
        if waiter.given.done():
            self._put_back(member)
        else:
            self._give(waiter, member)

    def _stop(self, member: Member) -> None:
        """Take a member out of the pool. Its place is free when its agent has stopped."""
        self._members.withdraw(member)
        was_unhealthy, member.state = member.state == "unhealthy", "stopping"
        if member.spec.is_stateless or member.agent is None:
            self._members.remove(member)
            if was_unhealthy:
                self._lives.tell(member, "stopped", "unhealthy")
        else:
            self._lives.until_stopped(self._stopped(member), member)

    async def _stopped(self, member: Member) -> None:
        error = await self._lives.stop(member)
        self._members.remove(member)
        self._lives.tell(member, "stopped", error=error)
        self._serve()

    # -- health, age and end --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Check unhealthy agents every `recovery_interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(self._settings.recovery_interval)
            self.look_after()

    def look_after(self) -> None:
        """Begin to check every unhealthy agent."""
        for member in self._members.unhealthy():
            self._members.withdraw(member)
            if member.spec.is_stateless:
                self._well(member, recovered=True)
            else:
                self._lives.in_background(self._care_for(member), member)

    async def _care_for(self, member: Member) -> None:
        """Check an unhealthy agent, and replace it if the check fails."""
        if member.agent is not None:
            if await self._lives.check(member) is None:
                self._well(member, recovered=True)
                return
            await self._lives.stop(member)
        error = await self._lives.start(member)
        if error is None:
            self._well(member, recovered=False)
            return
        await self._lives.stop(member)
        if time.monotonic() - member.since > self._settings.idle_ttl:
            self._stop(member)  # unhealthy for too long; a waiting lease can get a new agent
        else:
            self._members.put_unhealthy(member)
            self._lives.tell(member, "unhealthy", "unhealthy", error)
        self._serve()

    def _well(self, member: Member, *, recovered: bool) -> None:
        self._lives.tell(member, "recovered" if recovered else "replaced", "unhealthy")
        member.failures = 0
        self._members.put_idle(member)
        self._serve()

    async def retire(self) -> None:
        """Stop agents that have been idle for `idle_ttl` seconds, until cancelled."""
        while True:
            since = self._members.idle_since
            due = self._settings.idle_ttl + (0 if since is None else since - time.monotonic())
            await asyncio.sleep(max(due, 0.01))
            self.retire_idle(time.monotonic() - self._settings.idle_ttl)

    def retire_idle(self, before: float) -> None:
        """Begin to stop every agent that became idle before this moment (monotonic seconds)."""
        for member in self._members.idle_before(before):
            self._stop(member)

    async def close(self) -> None:
        """Stop all agents at once, each within `stop_timeout`. No agent can be leased afterwards."""
        self._closed = True
        for waiter in tuple(self._waiters):
            if not waiter.given.done():
                waiter.given.set_exception(_closed())
        await self._lives.cut_off()
        for member in self._members:
            if member.state != "stopping":
                self._stop(member)
        await self._lives.stopped()


def _fault_of(error: BaseException) -> BaseException | None:
    """The error that counts against the agent, or None: faults of the task or a shutdown do not count."""
    raised = error.error if isinstance(error, AgentRaised) else error
    if isinstance(error, asyncio.CancelledError | GeneratorExit) or says_nothing_of_the_agent(raised):
        return None
    return raised


def _closed() -> WarrenError:
    return WarrenError("this worker has stopped its agents: no task can run on it any more")
