"""Heartbeats: the `details` of a worker's `heartbeat` event, and the tally in it.

Anyone who may publish events can send these, so each name, number and size has a bound. Missing fields are
unknown, so that versions may differ within a fleet.
"""

from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from warren_schemas.values import AgentType, UtcDatetime

SHORTEST_INTERVAL: Final = 0.01
"""Least seconds between two heartbeats of a worker."""

LONGEST_INTERVAL: Final = 300.0
"""Most seconds between two heartbeats of a worker: one that fell silent is counted for three of these."""

MOST_AGENT_TYPES: Final = 1000
"""Most agent types in one heartbeat."""

MOST: Final = 2**53
"""Largest count, sum or size: every integer up to it is exact as a float."""

Count = Annotated[int, Field(ge=0, le=MOST)]
Number = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Bound = Annotated[str, StringConstraints(pattern=r"^(\+Inf|[0-9][0-9.]{0,15}(e[+-]?[0-9]{1,2})?)$")]

_T = TypeVar("_T")
ByAgentType = Annotated[dict[AgentType, _T], Field(max_length=MOST_AGENT_TYPES)]
ByWord = Annotated[dict[Word, _T], Field(max_length=64)]


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Buckets(_Told):
    """A histogram: observations by the upper bound of their bucket, and their sum in seconds."""

    buckets: Annotated[dict[Bound, Number], Field(max_length=64)] = {}
    sum_s: Number = 0


class AgentTypeTally(_Told):
    """The counts and times of one agent type."""

    totals: ByWord[Number] = {}
    run: Buckets = Buckets()
    wait: Buckets = Buckets()


class WorkerTally(_Told):
    """Everything that a worker has counted since `started_at`."""

    started_at: UtcDatetime | None = None
    agent_types: ByAgentType[AgentTypeTally] = {}
    commit: Buckets = Buckets()
    reconnects: ByWord[Number] = {}
    refused: ByWord[Number] = {}


class Heartbeat(_Told):
    """How a worker is."""

    interval_s: float | None = Field(None, ge=SHORTEST_INTERVAL, le=LONGEST_INTERVAL, allow_inf_nan=False)
    prefetch: int = Field(0, ge=0, le=65535)
    running: ByAgentType[Count] = {}
    waiting: ByAgentType[Count] = {}
    awaiting_agent: ByAgentType[Count] = {}
    breakers: ByAgentType[Word] = {}
    paused: list[AgentType] = Field([], max_length=MOST_AGENT_TYPES)
    agents: ByAgentType[ByWord[Count]] = {}
    totals: ByWord[Number] = {}
    tally: WorkerTally = WorkerTally()
    store_is_up: bool | None = None
    loop_lag_s: Seconds = 0
    memory_bytes: Count = 0

    @property
    def size(self) -> int:
        """How many values it holds: a measure of its memory."""
        return _size(self)


def _size(value: object) -> int:
    if isinstance(value, BaseModel):
        return sum(_size(part) for _, part in value)
    if isinstance(value, dict):
        return sum(_size(part) for part in value.values())
    return len(value) if isinstance(value, list) else 1
