"""Overview of the fleet, computed from the workers' heartbeats."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel

from warren.fleet.membership import RATES, Peer, Peers

MOST_AGENT_TYPES: Final = 1000  # that are shown: those that most workers have


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
    """One agent type over all workers that have it. `waiting` is None while no worker has seen its queue.

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
    """The overview at `now`, in seconds on the clock that the peers were heard by."""
    heard = peers.heard(now)
    counted = {peer.worker_id for peer in heard}
    having = _by_agent_type(heard)
    rates = _rates_by_agent_type(heard)
    return Overview(
        workers=[_worker(peer, now, is_heard=peer.worker_id in counted) for peer in peers],
        lost=peers.lost,
        agent_types={name: _agent_type(name, having[name], rates[name]) for name in sorted(having)},
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


def _by_agent_type(heard: Iterable[Peer]) -> dict[str, list[Peer]]:
    having = defaultdict[str, list[Peer]](list)
    for peer in heard:
        for name in _agent_types(peer):
            having[name].append(peer)
    most = sorted(having, key=lambda name: len(having[name]), reverse=True)[:MOST_AGENT_TYPES]
    return {name: having[name] for name in most}


def _rates_by_agent_type(heard: Iterable[Peer]) -> defaultdict[str, list[dict[str, float]]]:
    """Of all workers: one that does not have an agent type may count of it, by ageing."""
    rates = defaultdict[str, list[dict[str, float]]](list)
    for peer in heard:
        for name in _agent_types(peer) if peer.rates is not None else ():
            rates[name].append({})  # it counts nothing of it so far
        for name, of_it in peer.rates_by_type.items():
            rates[name].append(of_it)
    return rates


def _agent_type(name: str, having: Sequence[Peer], rates: Iterable[Mapping[str, float]]) -> AgentTypeLine:
    # Every worker looks at the same queue, so the latest look counts.
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
        rates=_sum(rates),
    )


def _sum(rates: Iterable[Mapping[str, float]]) -> dict[str, float] | None:
    """The sum of the rates of several workers; None if there are none."""
    known = list(rates)
    if not known:
        return None
    return {name: round(sum(one.get(name, 0) for one in known), 2) for name in RATES}
