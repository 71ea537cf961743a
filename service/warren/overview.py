"""A fleet at a glance, put together from what its workers say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel

from warren.peers import RATES, Peer, Peers


class WorkerLine(BaseModel):
    """One worker. `silent`: it has missed more heartbeats than it may, and is not counted."""

    worker_id: str
    state: Literal["up", "draining", "silent"]
    heard_s_ago: float
    running: int
    prefetch: int
    rates: dict[str, float] | None
    loop_lag_s: float
    memory_bytes: int


class AgentTypeLine(BaseModel):
    """One agent type over all workers that have it. `waiting` is None while nobody has seen its queue.

    `breakers` counts the workers by the state of their breaker, `agents` the agents by theirs. `rates` are
    tasks a second, None before any worker was heard twice. `is_paused`: a worker says that it was told to
    take none.
    """

    workers: int
    is_paused: bool = False
    waiting: int | None
    running: int
    breakers: dict[str, int]
    agents: dict[str, int]
    rates: dict[str, float] | None


class Overview(BaseModel):
    """The fleet. `rates` are tasks a second, None before any worker was heard twice."""

    workers: list[WorkerLine]
    lost: list[str]
    agent_types: dict[str, AgentTypeLine]
    running: int
    prefetch: int
    rates: dict[str, float] | None

    @property
    def counted(self) -> int:
        """Workers that are heard."""
        return sum(worker.state != "silent" for worker in self.workers)


def overview(peers: Peers, now: float) -> Overview:
    """What is to be seen at `now`, on the clock that the peers were heard by."""
    heard = peers.heard(now)
    counted = {peer.worker_id for peer in heard}
    agent_types = sorted({name for peer in heard for name in _agent_types(peer)})
    return Overview(
        workers=[_worker(peer, now, is_heard=peer.worker_id in counted) for peer in peers],
        lost=peers.lost,
        agent_types={name: _agent_type(name, heard) for name in agent_types},
        running=sum(sum(peer.report.running.values()) for peer in heard),
        prefetch=sum(peer.report.prefetch for peer in heard),
        rates=_sum(peer.rates for peer in heard if peer.rates is not None),
    )


def _worker(peer: Peer, now: float, *, is_heard: bool) -> WorkerLine:
    return WorkerLine(
        worker_id=peer.worker_id,
        state=peer.state if is_heard else "silent",
        heard_s_ago=round(max(0.0, now - peer.heard_at), 1),
        running=sum(peer.report.running.values()),
        prefetch=peer.report.prefetch,
        rates=None if peer.rates is None else {name: round(rate, 2) for name, rate in peer.rates.items()},
        loop_lag_s=peer.report.loop_lag_s,
        memory_bytes=peer.report.memory_bytes,
    )


def _agent_types(peer: Peer) -> set[str]:
    return {*peer.report.running, *peer.report.breakers}


def _agent_type(name: str, heard: Iterable[Peer]) -> AgentTypeLine:
    having = [peer for peer in heard if name in _agent_types(peer)]
    # Every worker looks at the same queue: whoever looked last knows best.
    seen = [(peer.heard_at, peer.report.waiting[name]) for peer in having if name in peer.report.waiting]
    agents = Counter[str]()
    for peer in having:
        agents.update(peer.report.agents.get(name, {}))
    return AgentTypeLine(
        workers=len(having),
        is_paused=any(name in peer.report.paused for peer in having),
        waiting=max(seen)[1] if seen else None,
        running=sum(peer.report.running.get(name, 0) for peer in having),
        breakers=Counter(peer.report.breakers[name] for peer in having if name in peer.report.breakers),
        agents=agents,
        rates=_sum(peer.rates_by_type.get(name, {}) for peer in heard if peer.rates is not None),
    )


def _sum(rates: Iterable[Mapping[str, float]]) -> dict[str, float] | None:
    """The rates of several workers together; None for those of nobody."""
    known = list(rates)
    if not known:
        return None
    return {name: round(sum(one.get(name, 0) for one in known), 2) for name in RATES}
