"""What a fleet has counted, added up over workers that come, go and are killed. No clock and no I/O in here.

Each worker's tally only grows. So what is kept of it is the largest value that was heard of each number, and
what it grew by is added to the fleet's: events may come twice, late or in any order, and nothing ever goes
down. Of a worker that was killed, what its last heartbeat said counts, and what the store has of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias

import structlog
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from warren.histogram import LABELS, label_for
from warren_schemas import Event

log = structlog.get_logger(__name__)

REMEMBERED: Final = 2000  # workers whose last tally is kept; who comes back after so many others counts anew

Number: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Timed: TypeAlias = Literal["run", "wait", "commit"]
Key: TypeAlias = tuple[str, ...]
"""("count", agent type, name), ("reconnects", connection), or of a histogram (which, agent type, bound) and
(which, agent type, "sum"); commits have no agent type, and "" stands there."""


class Buckets(BaseModel):
    """A histogram: observations by the upper bound of their bucket, and their sum in seconds."""

    buckets: dict[str, Number] = {}
    sum_s: Number = 0


class AgentTypeTally(BaseModel):
    """The counts and times of one agent type."""

    totals: dict[str, Number] = {}
    run: Buckets = Buckets()
    wait: Buckets = Buckets()


class TallyReport(BaseModel):
    """What a worker has counted since `started_at`. Whatever is missing is unknown, as in a heartbeat."""

    started_at: AwareDatetime
    agent_types: dict[str, AgentTypeTally] = {}
    commit: Buckets = Buckets()
    reconnects: dict[str, Number] = {}

    def numbers(self) -> Iterator[tuple[Key, float]]:
        """Every number in it, each of which only grows. Raises ValueError for a bound that is none."""
        for name, one in self.agent_types.items():
            for what, count in one.totals.items():
                yield ("count", name, what), count
            yield from _timed("run", name, one.run)
            yield from _timed("wait", name, one.wait)
        yield from _timed("commit", "", self.commit)
        for connection, count in self.reconnects.items():
            yield ("reconnects", connection), count


class FleetTotals:
    """The fleet's counts since `since`: those of every worker, alive or not.

    A worker that was at work before has its first tally that is heard taken off, unless its `started` was
    heard: what it did before was counted, if at all, by somebody before us.
    """

    def __init__(self, since: datetime) -> None:
        self.since = since
        self.numbers: dict[Key, float] = {}
        self._heard: OrderedDict[str, dict[Key, float]] = OrderedDict()

    @property
    def agent_types(self) -> set[str]:
        """Those that anything was counted of."""
        return {key[1] for key in self.numbers if key[0] in ("count", "run", "wait")}

    def count(self, agent_type: str, name: str) -> float:
        """How often this happened, by the names of a worker's totals."""
        return self.numbers.get(("count", agent_type, name), 0)

    def reconnects(self, connection: str) -> float:
        """How often connections of this name were opened again."""
        return self.numbers.get(("reconnects", connection), 0)

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
                report = TallyReport.model_validate(event.details["tally"])
                numbers = list(report.numbers())
            except (ValidationError, ValueError) as error:
                log.warning("tally.unreadable", worker_id=event.subject, error=str(error))
                return
            began_before = report.started_at < self.since
            self._add(self._remember(event.subject, _added(numbers) if began_before else {}), numbers)

    def ended(self, worker_id: str, outcomes: Mapping[tuple[str, str], float]) -> None:
        """Take in how many tasks the store says that a worker has ended, by agent type and outcome.

        One that was killed cannot tell what it ended after its last heartbeat. Without one there is nothing
        to compare with, and nothing is counted.
        """
        if worker_id in self._heard:
            numbers: list[tuple[Key, float]] = [(("count", *key), value) for key, value in outcomes.items()]
            self._add(self._heard[worker_id], numbers)

    def _remember(self, worker_id: str, first: dict[Key, float]) -> dict[Key, float]:
        """What was heard of a worker so far; `first` when that is nothing."""
        heard = self._heard.setdefault(worker_id, first)
        self._heard.move_to_end(worker_id)
        if len(self._heard) > REMEMBERED:
            self._heard.popitem(last=False)
        return heard

    def _add(self, heard: dict[Key, float], numbers: list[tuple[Key, float]]) -> None:
        for key, value in _added(numbers).items():
            growth = max(0.0, value - heard.get(key, 0.0))
            self.numbers[key] = self.numbers.get(key, 0.0) + growth
            heard[key] = heard.get(key, 0.0) + growth


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
