"""Counters of one worker since its start. Its heartbeats and its `stopped` event carry them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import JsonValue

from warren.support.histogram import Times

# What a worker refuses: commands on the control exchange, answers to a queue that `reply_to` may not name,
# and rows or dead letters that it sets aside.
REFUSED: Final = frozenset({"commands", "answers", "rows"})


@dataclass(slots=True)
class Totals:
    """Counts since the worker started, those of outcomes by their names."""

    delivered: int = 0
    redelivered: int = 0
    adopted: int = 0
    succeeded: int = 0
    retried: int = 0
    dead: int = 0
    cancelled: int = 0
    released: int = 0
    postponed: int = 0
    superseded: int = 0
    stale: int = 0
    promoted: int = 0

    def count(self, outcome: str) -> None:
        """Count an outcome that was settled, by its name."""
        setattr(self, outcome, getattr(self, outcome) + 1)

    def as_json(self) -> dict[str, JsonValue]:
        """The counts by name."""
        return asdict(self)


@dataclass(slots=True)
class Meter:
    """The counts and times of one agent type."""

    totals: Totals = field(default_factory=Totals)
    times: Times = field(default_factory=Times)

    def as_json(self) -> dict[str, JsonValue]:
        """The counts that are not 0, and the times."""
        counted: dict[str, JsonValue] = {
            name: count for name, count in self.totals.as_json().items() if count
        }
        return {"totals": counted, "run": self.times.run.as_json(), "wait": self.times.wait.as_json()}


class Tally:
    """The meters of one worker. `started_at` says since when they count."""

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC)
        self._meters: dict[str, Meter] = {}

    def of(self, agent_type: str) -> Meter:
        """The meter of an agent type; ageing meets types that this worker does not have."""
        meter = self._meters.get(agent_type)
        if meter is None:
            meter = self._meters[agent_type] = Meter()
        return meter

    @property
    def totals(self) -> Totals:
        """The counts of all agent types together."""
        every = [meter.totals for meter in self._meters.values()]
        return Totals(*(sum(getattr(one, name.name) for one in every) for name in fields(Totals)))

    def as_json(self) -> dict[str, JsonValue]:
        """Everything, by agent type."""
        return {
            "started_at": self.started_at.isoformat(),
            "agent_types": {name: meter.as_json() for name, meter in self._meters.items()},
        }


MemberState = Literal["starting", "busy", "idle", "unhealthy", "stopping"]
