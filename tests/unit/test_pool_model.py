"""The pool under random leases, failures, recoveries and evictions, against a simple model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from warren import Agent, Reject, Settings, Warren
from warren.support.failure import AgentRaised
from warren.worker.pool.pool import Pool

MAX_AGENTS, MAX_PER_USER, UNHEALTHY_AFTER = 3, 2, 2
TYPES, USERS = ("browse", "function"), ("ada", "bo")
SETTINGS = Settings(
    max_agents=MAX_AGENTS, max_agents_per_user=MAX_PER_USER, unhealthy_after=UNHEALTHY_AFTER, idle_ttl=3600
)
OUTCOMES: dict[str, BaseException | None] = {
    "success": None,
    "failure": ValueError("failed"),
    "reject": Reject("no"),
}
STEPS = 60  # turns of the event loop in which everything that need not wait has happened


@dataclass(eq=False)
class Lease:
    """One lease as the model sees it."""

    agent_type: str
    user_id: str
    end: asyncio.Future[BaseException | None]
    running: asyncio.Task[None] = field(init=False)
    agent: Agent | None = None

    @property
    def is_served(self) -> bool:
        return self.agent is not None and not self.running.done()

    @property
    def is_waiting(self) -> bool:
        return self.agent is None and not self.running.done()


class PoolMachine(RuleBasedStateMachine):
    """Two agent types, two users, room for three agents, two of one user."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.behaviour = dict.fromkeys(("start", "check", "stop"), "fine")
        self.gate = asyncio.Event()
        self.calls: dict[Agent, Counter[str]] = {}
        self.user_of: dict[Agent, str] = {}
        self.failures: Counter[Agent] = Counter()
        self.leases: list[Lease] = []
        self.told: Counter[str] = Counter()
        self.pool = self.loop.run_until_complete(self._make_pool())

    async def _make_pool(self) -> Pool:
        app, machine = Warren(), self

        class Scripted(Agent):
            async def start(self) -> None:
                await machine.live(self, "start")

            async def run(self) -> None: ...

            async def check(self) -> None:
                await machine.live(self, "check")

            async def stop(self) -> None:
                await machine.live(self, "stop")

        app.agent("browse")(Scripted)

        @app.agent("function")
        async def function() -> None: ...

        self.specs = app.agents
        return Pool(SETTINGS, self.tell)

    def tell(self, kind: str, subject: str, state: str, **_: Any) -> None:
        assert kind == "agent"
        assert subject in TYPES
        self.told[state] += 1

    async def live(self, agent: Agent, method: str) -> None:
        """What an agent does outside of its tasks, as the machine has decided."""
        calls = self.calls.setdefault(agent, Counter())
        assert not calls["stop"], f"{method} of an agent that was stopped"
        assert method == "start" or calls["start"] == 1
        calls[method] += 1
        if self.behaviour[method] == "hang":
            await self.gate.wait()
        elif self.behaviour[method] == "raise":
            raise RuntimeError(method)
        elif self.behaviour[method] == "cancel":
            raise asyncio.CancelledError
        if method == "check":
            self.failures[agent] = 0  # it has recovered, now or after it hung

    async def hold(self, lease: Lease) -> None:
        async with self.pool.lease(self.specs[lease.agent_type], lease.user_id) as agent:
            self.begin(lease, agent)
            if (error := await lease.end) is not None:
                self.failures[agent] += isinstance(error, ValueError)
                raise error
            self.failures[agent] = 0

    def begin(self, lease: Lease, agent: Agent) -> None:
        assert not any(other.agent is agent for other in self.leases if other.is_served), "leased twice"
        assert self.user_of.setdefault(agent, lease.user_id) == lease.user_id, "reused by another user"
        assert self.failures[agent] < UNHEALTHY_AFTER, "unhealthy, but in rotation"
        calls = self.calls.get(agent, Counter())
        assert not calls["stop"], "stopped, but in rotation"
        assert (calls["start"] == 1) == (lease.agent_type != "function")
        lease.agent = agent

    def settle(self, action: Callable[[], None] = lambda: None) -> None:
        async def turns() -> None:
            action()
            for _ in range(STEPS):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # -- what may happen ------------------------------------------------------------------------------

    @rule(agent_type=st.sampled_from(TYPES), user_id=st.sampled_from(USERS))
    def lease(self, agent_type: str, user_id: str) -> None:
        lease = Lease(agent_type, user_id, self.loop.create_future())
        lease.running = self.loop.create_task(self.hold(lease))
        self.leases.append(lease)
        self.settle()

    @precondition(lambda self: any(lease.is_served for lease in self.leases))
    @rule(data=st.data(), outcome=st.sampled_from(["failure", *OUTCOMES]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        lease = data.draw(st.sampled_from([lease for lease in self.leases if lease.is_served]))
        lease.end.set_result(OUTCOMES[outcome])
        self.settle()

    @precondition(lambda self: any(not lease.running.done() for lease in self.leases))
    @rule(data=st.data(), finish_too=st.booleans())
    def cancel(self, data: st.DataObject, finish_too: bool) -> None:
        """Cancel a lease, perhaps in the very turn in which another one ends."""
        lease = data.draw(st.sampled_from([lease for lease in self.leases if not lease.running.done()]))
        others = [other for other in self.leases if other.is_served and other is not lease]
        if finish_too and others:
            data.draw(st.sampled_from(others)).end.set_result(None)
            for _ in range(data.draw(st.integers(0, 4))):
                self.loop.run_until_complete(asyncio.sleep(0))
        lease.running.cancel()
        self.settle()

    @rule(
        method=st.sampled_from(("start", "check", "stop")),
        behaviour=st.sampled_from(("fine", "raise", "hang", "cancel")),
    )
    def behave(self, method: str, behaviour: str) -> None:
        self.behaviour[method] = behaviour

    @rule()
    def end_hanging(self) -> None:
        self.gate.set()
        self.gate = asyncio.Event()
        self.settle()

    @rule()
    def look_after(self) -> None:
        self.settle(self.forgiving_look)

    def forgiving_look(self) -> None:
        """A look also forgives those that cannot be checked: they have no life of their own."""
        for member in self.pool._members.unhealthy():
            if member.spec.is_stateless and member.agent is not None:
                self.failures[member.agent] = 0
        self.pool.look_after()

    @rule()
    def retire(self) -> None:
        self.settle(lambda: self.pool.retire_idle(time.monotonic() + 1))

    # -- what must be true after each of it --------------------------------------------------------------

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.pool) <= MAX_AGENTS
        of_user = Counter(member.user_id for member in self.pool._members)
        assert not of_user or max(of_user.values()) <= MAX_PER_USER
        living = [agent for agent, calls in self.calls.items() if not calls["stop"]]
        assert len(living) <= MAX_AGENTS

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        served = Counter(lease.agent_type for lease in self.leases if lease.is_served)
        assert served == Counter({name: states["busy"] for name, states in self.pool.counts().items()})
        waiting = Counter(lease.agent_type for lease in self.leases if lease.is_waiting)
        assert waiting == self.pool.waiting()
        assert self.pool.waiting().total() == 0 or len(self.pool) > 0

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Who waits either has a start or a stop under way, or the limits are taken up by busy agents."""
        for waiter in self.pool._waiters:
            if waiter.starting is not None or waiter.stopping in self.pool._members:
                continue
            own = [member for member in self.pool._members if member.user_id == waiter.user_id]
            full = own if len(own) >= MAX_PER_USER else list(self.pool._members)
            assert len(full) >= (MAX_PER_USER if full is own else MAX_AGENTS)
            in_care = {"starting", "stopping", "busy"}
            assert all(
                member.state in in_care or member not in self.pool._members._unhealthy for member in full
            )
            assert not any(member.state == "idle" for member in full)

    def teardown(self) -> None:
        try:
            self.end_everything()
        finally:
            self.loop.close()

    def end_everything(self) -> None:
        """Nothing is lost, no place is kept, every agent is stopped once."""
        self.behaviour = dict.fromkeys(self.behaviour, "fine")
        for _ in range(1000):
            self.gate.set()
            served = [lease for lease in self.leases if lease.is_served]
            if not served and not any(lease.is_waiting for lease in self.leases):
                break
            for lease in served:
                if not lease.end.done():
                    lease.end.set_result(None)
            self.settle(self.forgiving_look)
        assert all(lease.running.done() for lease in self.leases)
        self.loop.run_until_complete(asyncio.wait_for(self.pool.close(), 30))
        for lease in self.leases:
            if not lease.running.cancelled():
                assert isinstance(
                    lease.running.exception(),
                    None | ValueError | Reject | AgentRaised,
                )
        assert (len(self.pool), self.pool.is_at_rest, self.pool.counts()) == (0, True, {})
        members = self.pool._members
        assert not any((members._of_user, members._shelves, members._idle, members._unhealthy))
        assert all(calls["stop"] == 1 for calls in self.calls.values())
        self.loop.run_until_complete(asyncio.sleep(0))
        assert not asyncio.all_tasks(self.loop)


TestPoolModel = PoolMachine.TestCase
TestPoolModel.settings = hypothesis_settings(max_examples=100, stateful_step_count=50, deadline=None)
