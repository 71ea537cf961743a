"""Who else works, as far as can be heard: workers counted by their events. No clock and no I/O in here.

Times named `now` are seconds on the listener's own clock: those of several hosts need not agree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import structlog
from pydantic import BaseModel, Field, ValidationError

from warren_schemas import Event

log = structlog.get_logger(__name__)

MISSED: Final = 3  # heartbeats in a row that a worker may miss, and no more
REMEMBERED: Final = 1000  # workers that have gone; their last events may still be on the way
RATES: Final = ("succeeded", "retried", "dead")  # totals of which it matters how fast they grow


class Counted(BaseModel):
    """What was counted of one agent type."""

    totals: dict[str, float] = {}


class Tallied(BaseModel):
    """What a worker has counted, by agent type."""

    agent_types: dict[str, Counted] = {}


class Report(BaseModel):
    """What a heartbeat says. Whatever is missing is unknown, so that versions may differ within a fleet."""

    interval_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    prefetch: int = 0
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    awaiting_agent: dict[str, int] = {}
    breakers: dict[str, str] = {}
    paused: list[str] = []
    agents: dict[str, dict[str, int]] = {}
    totals: dict[str, float] = {}
    tally: Tallied = Tallied()
    store_is_up: bool | None = None
    loop_lag_s: float = 0
    memory_bytes: int = 0


@dataclass(slots=True)
class Peer:
    """One worker. `rates` are tasks a second between its last two heartbeats, None before the second.

    `rates_by_type` are those of each agent type of which it has counted anything.
    """

    worker_id: str
    heard_at: float
    interval: float
    state: Literal["up", "draining"] = "up"
    told_at: datetime | None = None
    report: Report = field(default_factory=Report)
    rates: dict[str, float] | None = None
    rates_by_type: dict[str, dict[str, float]] = field(default_factory=dict)

    def missed(self, now: float) -> float:
        """How many of its heartbeats could have been heard since the last that was."""
        return (now - self.heard_at) / self.interval


class Peers:
    """The workers that can be heard. `interval` is what a worker's heartbeat has that does not say."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._peers: dict[str, Peer] = {}
        self._stopped: OrderedDict[str, None] = OrderedDict()
        self._lost: OrderedDict[str, None] = OrderedDict()

    def __iter__(self) -> Iterator[Peer]:
        return iter([self._peers[worker_id] for worker_id in sorted(self._peers)])

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def lost(self) -> list[str]:
        """Who was announced lost and has not come back, the last of them at the end."""
        return list(self._lost)

    def take(self, event: Event, now: float) -> None:
        """Take in an event of a worker about itself, or one that announces it lost."""
        if event.kind != "worker":
            return
        match event.state:
            case "stopped":
                # Its last heartbeat may come after its last words: it must not bring it back.
                self._peers.pop(event.subject, None)
                self._lost.pop(event.subject, None)
                _remember(self._stopped, event.subject)
            case "lost":
                self.lose(event.subject)
            case "heartbeat" | "started" | "draining" if event.subject not in self._stopped:
                self._hear(event, now)

    def lose(self, worker_id: str) -> None:
        """It is not counted any more, until it is heard again."""
        if self._peers.pop(worker_id, None) is not None:
            _remember(self._lost, worker_id)

    def silent(self, now: float) -> list[Peer]:
        """Those that have missed more heartbeats than they may."""
        return [peer for peer in self if peer.missed(now) > MISSED]

    def heard(self, now: float) -> list[Peer]:
        """Those that have not: the fleet."""
        return [peer for peer in self if peer.missed(now) <= MISSED]

    def excuse(self, now: float) -> None:
        """Whatever was not heard until now is no fault of theirs: everybody begins afresh."""
        for peer in self._peers.values():
            peer.heard_at = max(peer.heard_at, now)

    def _hear(self, event: Event, now: float) -> None:
        self._lost.pop(event.subject, None)
        peer = self._peers.setdefault(event.subject, Peer(event.subject, now, self._interval))
        peer.heard_at = max(peer.heard_at, now)
        match event.state:
            case "heartbeat":
                self._report(peer, event)
            case "draining":
                peer.state = "draining"

    def _report(self, peer: Peer, event: Event) -> None:
        try:
            report = Report.model_validate(event.details)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", worker_id=peer.worker_id, error=str(error))
            return  # it lives all the same
        if peer.told_at is not None and (seconds := (event.at - peer.told_at).total_seconds()) > 0:
            before = peer.report.tally.agent_types
            peer.rates = _rates(peer.report.totals, report.totals, seconds)
            peer.rates_by_type = {
                name: _rates(before[name].totals if name in before else {}, counted.totals, seconds)
                for name, counted in report.tally.agent_types.items()
            }
        peer.report, peer.told_at = report, event.at
        peer.interval = report.interval_s or self._interval


def _rates(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {name: max(0, now.get(name, 0) - before.get(name, 0)) / seconds for name in RATES}


def _remember(known: OrderedDict[str, None], worker_id: str) -> None:
    known[worker_id] = None
    known.move_to_end(worker_id)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
