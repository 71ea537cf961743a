"""What the run of a task comes to: one of these, settled by one `match`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final, TypeAlias

from warren.support.failure import Failure
from warren_schemas import Reason

BREAKER_OPEN: Final = "breaker open"
SHUTDOWN: Final = "shutdown"
RUNS_ELSEWHERE: Final = "runs elsewhere"
TAKEN_BACK: Final = "taken back by the broker"


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The agent returned: `result` is its JSON."""

    name: ClassVar = "succeeded"

    result: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The task will not be run again by itself."""

    name: ClassVar = "dead"

    reason: Reason
    failure: Failure
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class Released:
    """The task goes back to its queue: nobody's fault.

    `attempts` is what it has used up so far. `tried` says whether the agent ran in vain: then it goes behind
    its peers. A failed `probe` goes behind everything that waits.
    """

    name: ClassVar = "released"

    attempts: int
    tried: bool
    probe: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer run has taken the task over: its end counts, and nothing is to be told of this one."""

    name: ClassVar = "superseded"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody has decided that the task is not to run (any more)."""

    name: ClassVar = "cancelled"

    attempts: int


@dataclass(frozen=True, slots=True)
class Stale:
    """Another message of the task is the live one: this one only goes."""

    name: ClassVar = "stale"


@dataclass(frozen=True, slots=True)
class Promoted:
    """The task has waited one step and was published again, with a higher priority: this copy only goes."""

    name: ClassVar = "promoted"

    priority: int


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The task waits in the store until `due_at` (seconds since the epoch): too long to hold a place here.

    `failure` is that of the last attempt, None for a task that was not due yet.
    """

    name: ClassVar = "postponed"

    due_at: float
    attempts: int
    failure: Failure | None = None
    first_failed_at: datetime | None = None
    last_failed_at: datetime | None = None


Outcome: TypeAlias = Succeeded | Dead | Cancelled | Released | RetryLater | Superseded | Stale | Promoted
