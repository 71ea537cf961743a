"""Deliveries that a worker fails to handle: a fault of Warren's or its surroundings, not of the agent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from warren.errors import BrokerError, StoreUnavailable, StoreUnusable
from warren.support.failure import Failure
from warren.worker.outcome import Dead

# Seconds until such a delivery is tried again, in order. After the last one it is set aside.
PAUSES: Final = (1.0, 5.0, 25.0)
LONGEST_PAUSE: Final = 60.0  # seconds

# What fails every task alike, and passes: no reason to set one of them aside.
CIRCUMSTANCES: Final = (BrokerError, StoreUnavailable, StoreUnusable)


def pause_after(error: BaseException, tries: int) -> float | None:
    """Seconds until the next try after so many have failed, or None: there is no use in another one."""
    if tries <= len(PAUSES):
        return PAUSES[tries - 1]
    return LONGEST_PAUSE if isinstance(error, CIRCUMSTANCES) else None


def given_up(error: BaseException, tries: int, attempts: int) -> Dead:
    """The end of a task that could not be handled. It says whose fault that is."""
    failure = Failure.of(error)
    told = Failure.told(
        "WorkerFailed",
        f"Warren failed {tries} times to handle this task, which is no fault of its agent: "
        f"{failure.error_type}: {failure.message}",
    )
    told = replace(told, traceback=failure.traceback, fingerprint=failure.fingerprint)
    now = datetime.now(UTC)
    return Dead("exhausted", told, attempts, now, now)
