"""Members of the agent pool and the limits on their number: plain data, without asyncio."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from warren.agents.app import AgentSpec
from warren.agents.base import Agent
from warren.fleet.counters import MemberState


@dataclass(slots=True, eq=False)
class Member:
    """One place in the pool, and the agent instance in it. It serves one user for its whole life.

    `agent` is None while there is no instance (its start failed, or it is being replaced). Such a member is
    called cold. `failures` counts failures in a row. `since` is when it became idle or unhealthy (monotonic
    seconds).
    """

    spec: AgentSpec
    user_id: str
    number: int
    state: MemberState
    agent: Agent | None = None
    failures: int = 0
    since: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """Its agent type and its user."""
        return self.spec.agent_type, self.user_id


@dataclass(slots=True)
class _Shelf:
    """The members of one agent type and user: their number, and the idle ones.

    `ready` members have an agent and no failures. The `others` must be compared.
    """

    members: int = 0
    ready: dict[Member, None] = field(default_factory=dict)
    others: dict[Member, None] = field(default_factory=dict)


class Members:
    """The members of one pool, indexed for the pool's queries, and the limits on their number."""

    def __init__(self, max_agents: int, max_agents_per_user: int) -> None:
        self._max_agents, self._max_agents_per_user = max_agents, max_agents_per_user
        self._all: dict[Member, None] = {}
        self._of_user: dict[str, int] = {}
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        self._idle: OrderedDict[Member, None] = OrderedDict()  # least recently used first
        self._unhealthy: OrderedDict[Member, None] = OrderedDict()  # longest unhealthy first

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._all))

    def __contains__(self, member: object) -> bool:
        return member in self._all

    def counts(self) -> dict[str, Counter[str]]:
        """The number of members by agent type and state."""
        counts: dict[str, Counter[str]] = {}
        for member in self._all:
            counts.setdefault(member.spec.agent_type, Counter())[member.state] += 1
        return counts

    # -- limits ---------------------------------------------------------------------------------------

    def has_room(self, user_id: str) -> bool:
        """Whether the limits allow one more member of this user."""
        return len(self._all) < self._max_agents and not self._is_full(user_id)

    def _is_full(self, user_id: str) -> bool:
        return self._of_user.get(user_id, 0) >= self._max_agents_per_user

    def spare(self, user_id: str) -> Member | None:
        """A member whose place this user may get: the longest unhealthy, or else the least recently used."""
        own_only = self._is_full(user_id)
        for member in chain(self._unhealthy, self._idle):
            if not own_only or member.user_id == user_id:
                return member
        return None

    def add(self, member: Member) -> None:
        """Add a member."""
        self._all[member] = None
        self._of_user[member.user_id] = self._of_user.get(member.user_id, 0) + 1
        self._shelves.setdefault(member.key, _Shelf()).members += 1

    def remove(self, member: Member) -> None:
        """Remove a member."""
        self.withdraw(member)
        del self._all[member]
        self._of_user[member.user_id] -= 1
        if not self._of_user[member.user_id]:
            del self._of_user[member.user_id]
        shelf = self._shelves[member.key]
        shelf.members -= 1
        if not shelf.members:
            del self._shelves[member.key]

    # -- who is free ----------------------------------------------------------------------------------

    def take(self, key: tuple[str, str]) -> Member | None:
        """Take an idle member with an agent, and mark it busy: the one with the fewest failures.

        Among members without failures it is the most recently used, so that the others can reach `idle_ttl`.
        """
        shelf = self._shelves.get(key)
        if shelf is None:
            return None
        if shelf.ready:
            member, _ = shelf.ready.popitem()
        else:
            warm = (member for member in shelf.others if member.agent is not None)
            found = min(warm, key=lambda member: member.failures, default=None)
            if found is None:
                return None
            member = found
            del shelf.others[member]
        del self._idle[member]
        member.state = "busy"
        return member

    def cold(self, key: tuple[str, str]) -> Member | None:
        """An idle member without an agent, which must be started first: the one with the fewest failures."""
        shelf = self._shelves.get(key)
        if shelf is None:
            return None
        cold = (member for member in shelf.others if member.agent is None)
        return min(cold, key=lambda member: member.failures, default=None)

    def put_idle(self, member: Member) -> None:
        """Mark a member as idle: it may be taken."""
        member.state, member.since = "idle", time.monotonic()
        shelf = self._shelves[member.key]
        if member.failures or member.agent is None:
            shelf.others[member] = None
        else:
            shelf.ready[member] = None
        self._idle[member] = None

    def put_unhealthy(self, member: Member) -> None:
        """Mark a member as unhealthy: it may not be taken until it recovers, but its place may."""
        if member.state != "unhealthy":
            member.state, member.since = "unhealthy", time.monotonic()
        self._unhealthy[member] = None

    def withdraw(self, member: Member) -> None:
        """Withdraw a member: neither it nor its place may be taken."""
        self._unhealthy.pop(member, None)
        if member in self._idle:
            del self._idle[member]
            shelf = self._shelves[member.key]
            shelf.ready.pop(member, None)
            shelf.others.pop(member, None)

    def idle_before(self, moment: float) -> list[Member]:
        """The members that became idle before this moment (monotonic seconds)."""
        return [member for member in self._idle if member.since < moment]

    def unhealthy(self) -> list[Member]:
        """The unhealthy members, which wait for a check."""
        return list(self._unhealthy)

    @property
    def idle_since(self) -> float | None:
        """When the least recently used idle member became idle (monotonic seconds); None without one."""
        return next((member.since for member in self._idle), None)
