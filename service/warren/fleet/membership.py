"""Membership: the workers of the fleet, counted by their events. This module does no I/O.

Times named `now` are seconds on the listener's own clock: those of several hosts need not agree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from pydantic import ValidationError

from warren.support.failure import what_does_not_fit
from warren.support.refusals import Refusals
from warren_schemas import Event, Heartbeat

MISSED: Final = 3  # heartbeats in a row that a worker may miss, and no more
# Anyone who may publish events can make workers up: of more than this, those heard longest ago are forgotten.
MOST: Final = 10_000
MOST_VALUES: Final = 1_000_000  # in the last heartbeats of all workers together
REMEMBERED: Final = 1000  # workers that have gone; their last events may still be on the way
RATES: Final = ("succeeded", "retried", "dead")  # totals of which it matters how fast they grow


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
    report: Heartbeat = field(default_factory=Heartbeat)
    size: int = 0  # values in the report
    rates: dict[str, float] | None = None
    rates_by_type: dict[str, dict[str, float]] = field(default_factory=dict)

    def missed(self, now: float) -> float:
        """The number of heartbeat intervals since its last heartbeat."""
        return (now - self.heard_at) / self.interval


class Peers:
    """The members of the fleet. `interval` is the default for a heartbeat without an interval, in seconds.

    `refusals` counts malformed heartbeats: they still show that the worker lives.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._peers: OrderedDict[str, Peer] = OrderedDict()  # heard longest ago first
        self._size = 0
        self._stopped: OrderedDict[str, float] = OrderedDict()  # and when that was heard
        self._lost: OrderedDict[str, float] = OrderedDict()
        self.refusals = Refusals("heartbeat.unreadable")

    def __iter__(self) -> Iterator[Peer]:
        return iter([self._peers[worker_id] for worker_id in sorted(self._peers)])

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def lost(self) -> list[str]:
        """Workers that were announced lost and have not come back, the latest at the end."""
        return list(self._lost)

    def take(self, event: Event, now: float) -> None:
        """Take in an event of a worker about itself, or one that announces it lost."""
        if event.kind != "worker":
            return
        match event.state:
            case "stopped":
                self._forget(event.subject)
                self._lost.pop(event.subject, None)
                _remember(self._stopped, event.subject, now)
            case "lost":
                self.lose(event.subject, now)
            case "heartbeat" | "started" | "draining" if not self._has_stopped(event.subject, now):
                self._hear(event, now)

    def lose(self, worker_id: str, now: float) -> None:
        """Remove a worker from the count, until it is heard again."""
        if self._forget(worker_id):
            _remember(self._lost, worker_id, now)

    def silent(self, now: float) -> list[Peer]:
        """Workers that have missed more heartbeats than allowed."""
        return [peer for peer in self if peer.missed(now) > MISSED]

    def heard(self, now: float) -> list[Peer]:
        """Workers that have not missed too many heartbeats: the fleet."""
        return [peer for peer in self if peer.missed(now) <= MISSED]

    def excuse(self, now: float) -> None:
        """Reset the silence of all workers to 0, because the listener could not hear any event until now."""
        for peer in self._peers.values():
            peer.heard_at = max(peer.heard_at, now)

    def _has_stopped(self, worker_id: str, now: float) -> bool:
        """Whether a heartbeat is a late one, from before the worker's `stopped` event.

        A heartbeat that comes much later means that the `stopped` event was false, and the worker lives.
        """
        stopped_at = self._stopped.get(worker_id)
        return stopped_at is not None and now - stopped_at <= MISSED * self._interval

    def _forget(self, worker_id: str) -> bool:
        """Forget a worker. False: it was not known."""
        peer = self._peers.pop(worker_id, None)
        if peer is None:
            return False
        self._size -= peer.size
        return True

    def _hear(self, event: Event, now: float) -> None:
        self._lost.pop(event.subject, None)
        peer = self._peers.setdefault(event.subject, Peer(event.subject, now, self._interval))
        self._peers.move_to_end(event.subject)
        peer.heard_at = max(peer.heard_at, now)
        match event.state:
            case "heartbeat":
                self._report(peer, event)
            case "draining":
                peer.state = "draining"
        while len(self._peers) > MOST or (self._size > MOST_VALUES and len(self._peers) > 1):
            self._forget(next(iter(self._peers)))

    def _report(self, peer: Peer, event: Event) -> None:
        try:
            report = Heartbeat.model_validate(event.details)
        except ValidationError as error:
            self.refusals.note(what_does_not_fit(error), worker_id=peer.worker_id)
            return  # it lives all the same
        if peer.told_at is not None and (seconds := (event.at - peer.told_at).total_seconds()) > 0:
            before = peer.report.tally.agent_types
            peer.rates = _rates(peer.report.totals, report.totals, seconds)
            peer.rates_by_type = {
                name: _rates(before[name].totals if name in before else {}, counted.totals, seconds)
                for name, counted in report.tally.agent_types.items()
            }
        size = report.size
        self._size += size - peer.size
        peer.report, peer.told_at, peer.size = report, event.at, size
        peer.interval = report.interval_s or self._interval


def _rates(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {name: max(0, now.get(name, 0) - before.get(name, 0)) / seconds for name in RATES}


def _remember(known: OrderedDict[str, float], worker_id: str, now: float) -> None:
    known[worker_id] = now
    known.move_to_end(worker_id)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
