"""Outcomes of a task's run. A single `match` in `settlement` handles all of them."""

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
    """The agent returned a result; `result` is its JSON."""

    name: ClassVar = "succeeded"

    result: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The task has failed for good: it runs again only if it is replayed."""

    name: ClassVar = "dead"

    reason: Reason
    failure: Failure
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class Released:
    """The task goes back to its queue, without a fault of the task or its agent.

    `attempts` is the number of attempts used so far. `tried`: an attempt ran and failed, so the task goes
    behind others of its priority. A failed `probe` goes to the end of the queue.
    """

    name: ClassVar = "released"

    attempts: int
    tried: bool
    probe: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer run has taken the task over. Its outcome counts, and this run reports none."""

    name: ClassVar = "superseded"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The task was cancelled."""

    name: ClassVar = "cancelled"

    attempts: int


@dataclass(frozen=True, slots=True)
class Stale:
    """Another message of the task is the live one: this message is only acknowledged."""

    name: ClassVar = "stale"


@dataclass(frozen=True, slots=True)
class Promoted:
    """The task waited one ageing step and was published again with a higher priority. This copy ends."""

    name: ClassVar = "promoted"

    priority: int


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The task waits in the store until `due_at` (seconds since the epoch), too long to wait in the worker.

    `failure` is the failure of the last attempt; None for a task that was not due yet.
    """

    name: ClassVar = "postponed"

    due_at: float
    attempts: int
    failure: Failure | None = None
    first_failed_at: datetime | None = None
    last_failed_at: datetime | None = None


Outcome: TypeAlias = Succeeded | Dead | Cancelled | Released | RetryLater | Superseded | Stale | Promoted
