"""Fleet totals: monotonic counters, summed over workers that come, go and are killed. No I/O.

Each worker's tally only grows. So this module keeps the largest value heard of each number, and adds each
increase to the fleet's counter. Events may come twice, late or in any order, and no counter ever goes down. A
killed worker counts with its last heartbeat, and with the ends that the store has of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Final, Literal, TypeAlias

from pydantic import ValidationError

from warren.fleet.counters import REFUSED, Totals
from warren.support.failure import what_does_not_fit
from warren.support.histogram import LABELS, label_for
from warren.support.refusals import Refusals
from warren_schemas import Event, WorkerTally
from warren_schemas.heartbeat import Buckets

REMEMBERED: Final = 2000  # workers whose last tally is kept
FORGOTTEN: Final = 20_000  # workers of which only the name is kept
MOST_NUMBERS: Final = 1_000_000  # in what is kept of all workers together
# Anyone who may publish events can make agent types up: of more than this, those counted longest ago are
# forgotten, with their numbers.
MOST_AGENT_TYPES: Final = 1000
COUNTED: Final = frozenset(field.name for field in fields(Totals))
CONNECTIONS: Final = frozenset({"consuming", "publishing"})
OF_AN_AGENT_TYPE: Final = ("count", "run", "wait")  # keys that begin so

Timed: TypeAlias = Literal["run", "wait", "commit"]
Key: TypeAlias = tuple[str, ...]
"""("count", agent type, name), ("reconnects", connection), ("refused", what), or of a histogram
(which, agent type, bound) and (which, agent type, "sum"); commits have no agent type, and "" stands there."""


class FleetTotals:
    """The fleet's counts since `since`: those of every worker, alive or not.

    A worker that was at work before has its first tally that is heard taken off, unless its `started` was
    heard: its earlier work belongs to an earlier object. The same holds for a worker that was forgotten, or
    its work would be counted twice.

    `refusals` counts tallies that do not fit.
    """

    def __init__(self, since: datetime) -> None:
        self.since = since
        self.numbers: dict[Key, float] = {}
        self.refusals = Refusals("tally.unreadable")
        self._agent_types: OrderedDict[str, set[Key]] = OrderedDict()  # each with the keys of its numbers
        self._heard: OrderedDict[str, dict[Key, float]] = OrderedDict()
        self._kept = 0  # numbers in `_heard`
        self._forgotten: OrderedDict[str, None] = OrderedDict()

    @property
    def agent_types(self) -> set[str]:
        """Agent types with at least one count."""
        return set(self._agent_types)

    def count(self, agent_type: str, name: str) -> float:
        """The fleet's count of this name in the workers' totals."""
        return self.numbers.get(("count", agent_type, name), 0)

    def reconnects(self, connection: str) -> float:
        """The number of reconnects of connections with this name."""
        return self.numbers.get(("reconnects", connection), 0)

    def refused(self, what: str) -> float:
        """The number of messages of this kind that workers have refused."""
        return self.numbers.get(("refused", what), 0)

    def buckets(self, which: Timed, agent_type: str = "") -> tuple[dict[str, float], float]:
        """A histogram: observations by the upper bound of their bucket, and their sum in seconds."""
        known = {label: self.numbers.get((which, agent_type, label), 0.0) for label in LABELS}
        return known, self.numbers.get((which, agent_type, "sum"), 0.0)

    def take(self, event: Event) -> None:
        """Take in an event of a worker about itself."""
        if event.kind != "worker" or event.state not in ("started", "heartbeat", "stopped"):
            return
        if event.state == "started":
            self._remember(event.subject, {})
        elif "tally" in event.details:
            try:
                tally = WorkerTally.model_validate(event.details["tally"])
            except ValidationError as error:
                self.refusals.note(what_does_not_fit(error), worker_id=event.subject)
                return
            if tally.started_at is None:
                self.refusals.note("it does not say since when it counts", worker_id=event.subject)
                return
            numbers = list(_numbers(tally))
            began_before = event.subject in self._forgotten or tally.started_at < self.since
            self._add(self._remember(event.subject, _added(numbers) if began_before else {}), numbers)
        self._forget_the_oldest()

    def ended(self, worker_id: str, outcomes: Mapping[tuple[str, str], float]) -> None:
        """Take in how many tasks the store says that a worker has ended, by agent type and outcome.

        One that was killed cannot tell what it ended after its last heartbeat. Without one there is nothing
        to compare with, and nothing is counted.
        """
        if worker_id in self._heard:
            numbers: list[tuple[Key, float]] = [(("count", *key), value) for key, value in outcomes.items()]
            self._add(self._heard[worker_id], numbers)
            self._forget_the_oldest()

    def _remember(self, worker_id: str, first: dict[Key, float]) -> dict[Key, float]:
        """What was heard of a worker so far; `first` when that is nothing."""
        if worker_id not in self._heard:
            self._heard[worker_id] = first
            self._kept += len(first)
        self._heard.move_to_end(worker_id)
        return self._heard[worker_id]

    def _forget_the_oldest(self) -> None:
        """Keep what is known of workers and agent types within its bounds."""
        while len(self._heard) > REMEMBERED or (self._kept > MOST_NUMBERS and len(self._heard) > 1):
            worker_id, numbers = self._heard.popitem(last=False)
            self._kept -= len(numbers)
            self._forgotten[worker_id] = None
        while len(self._forgotten) > FORGOTTEN:
            self._forgotten.popitem(last=False)
        while len(self._agent_types) > MOST_AGENT_TYPES:
            _, keys = self._agent_types.popitem(last=False)
            for key in keys:
                del self.numbers[key]

    def _add(self, heard: dict[Key, float], numbers: list[tuple[Key, float]]) -> None:
        before = len(heard)
        for key, value in _added(numbers).items():
            growth = max(0.0, value - heard.get(key, 0.0))
            self.numbers[key] = self.numbers.get(key, 0.0) + growth
            heard[key] = heard.get(key, 0.0) + growth
            if key[0] in OF_AN_AGENT_TYPE:
                self._agent_types.setdefault(key[1], set()).add(key)
        for name in {key[1] for key, _ in numbers if key[0] in OF_AN_AGENT_TYPE}:
            self._agent_types.move_to_end(name)
        self._kept += len(heard) - before


def _numbers(tally: WorkerTally) -> Iterator[tuple[Key, float]]:
    """Every number of a tally that is known here, each of which only grows."""
    for name, one in tally.agent_types.items():
        for what in COUNTED & one.totals.keys():
            yield ("count", name, what), one.totals[what]
        yield from _timed("run", name, one.run)
        yield from _timed("wait", name, one.wait)
    yield from _timed("commit", "", tally.commit)
    for connection in tally.reconnects.keys() & CONNECTIONS:
        yield ("reconnects", connection), tally.reconnects[connection]
    for what in tally.refused.keys() & REFUSED:
        yield ("refused", what), tally.refused[what]


def _timed(which: Timed, agent_type: str, histogram: Buckets) -> Iterator[tuple[Key, float]]:
    for bound, count in histogram.buckets.items():
        yield (which, agent_type, label_for(bound)), count
    yield (which, agent_type, "sum"), histogram.sum_s


def _added(numbers: list[tuple[Key, float]]) -> dict[Key, float]:
    """By key; buckets of another version may fall into one of ours."""
    together: dict[Key, float] = {}
    for key, value in numbers:
        together[key] = together.get(key, 0.0) + value
    return together
