"""Counters from the events of the demo's workers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from uuid import UUID

from pydantic import JsonValue

from warren_schemas import Event, State


class Watch:
    """Counts from the events of all workers, those of a killed one as of its last heartbeat."""

    def __init__(self) -> None:
        self.breaker_opened = 0
        self.most_agents = 0
        self._agent_events: defaultdict[str, set[UUID]] = defaultdict(set)
        self._agents: dict[str, int] = {}
        self._retrying: set[UUID] = set()
        self._totals: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._running: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._news = asyncio.Event()

    async def follow(self, events: AsyncIterable[Event]) -> None:
        """Take in events, for ever."""
        async for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Take in one event. It may come twice."""
        match event.kind, event.state:
            case "task", "retrying":
                self._retrying.add(event.event_id)
            case "breaker", "open":
                self.breaker_opened += 1
            case "agent", state:
                self._agent_events[state].add(event.event_id)
            case "worker", "heartbeat":
                self._agents[event.subject] = _agents(event.details.get("agents"))
                self._running[event.subject] = sum(_numbers(event.details.get("running")).values())
                self._keep(event.subject, event.details.get("totals"))
            case "worker", "stopped":
                self._stopped.add(event.subject)
                self._keep(event.subject, event.details)
        self._news.set()

    @property
    def retried(self) -> int:
        """Attempts that failed and were to be made again."""
        return len(self._retrying)

    def agents(self, *states: State) -> int:
        """How often an agent came into one of these states."""
        return sum(len(self._agent_events[state]) for state in states)

    def count_agents(self, pids: Iterable[int]) -> None:
        """Note how many agents live now in these workers, as of their last heartbeats."""
        living = sum(self._agents.get(worker_id, 0) for worker_id in _of(self._agents, pids))
        self.most_agents = max(self.most_agents, living)

    def total(self, name: str, pids: Iterable[int] | None = None) -> int:
        """One of the workers' own totals, added up over all of them, or over these."""
        of = self._totals if pids is None else _of(self._totals, pids)
        return sum(self._totals[worker_id].get(name, 0) for worker_id in of)

    def running(self, pids: Iterable[int]) -> int:
        """Tasks that are in these workers, as of their last heartbeats."""
        return sum(self._running.get(worker_id, 0) for worker_id in _of(self._running, pids))

    async def heard(self, pid: int) -> None:
        """Wait for the first heartbeat of a worker."""
        await self._until(lambda: bool(_of(self._running, [pid])))

    async def stopped(self, pid: int) -> None:
        """Wait for the last words of a worker."""
        await self._until(lambda: bool(_of(self._stopped, [pid])))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _keep(self, worker_id: str, totals: JsonValue) -> None:
        """Keep the larger totals, because events may arrive in any order."""
        kept = self._totals[worker_id]
        for name, number in _numbers(totals).items():
            kept[name] = max(number, kept.get(name, 0))


def _agents(by_type: JsonValue) -> int:
    """All agents of a worker, in any state."""
    if not isinstance(by_type, Mapping):
        return 0
    return sum(sum(_numbers(by_state).values()) for by_state in by_type.values())


def _numbers(value: JsonValue | Mapping[str, JsonValue]) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {}
    return {name: number for name, number in value.items() if isinstance(number, int)}


def _of(worker_ids: Iterable[str], pids: Iterable[int]) -> list[str]:
    """A worker's id is HOST-PID-RANDOM."""
    wanted = {str(pid) for pid in pids}
    return [worker_id for worker_id in worker_ids if worker_id.split("-")[-2] in wanted]
