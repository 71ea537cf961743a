"""Retry rule for deliveries that a worker fails to handle, through a fault of Warren or its environment."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from warren.errors import BrokerError, StoreUnavailable, StoreUnusable
from warren.support.failure import Failure
from warren.worker.outcome import Dead

# Seconds before each new try of such a delivery. After the last one it is set aside.
PAUSES: Final = (1.0, 5.0, 25.0)
LONGEST_PAUSE: Final = 60.0  # seconds

# Temporary errors that hit all tasks alike: no reason to set one of them aside.
CIRCUMSTANCES: Final = (BrokerError, StoreUnavailable, StoreUnusable)


def pause_after(error: BaseException, tries: int) -> float | None:
    """Seconds until the next try after `tries` failures; None if no further try is made."""
    if tries <= len(PAUSES):
        return PAUSES[tries - 1]
    return LONGEST_PAUSE if isinstance(error, CIRCUMSTANCES) else None


def given_up(error: BaseException, tries: int, attempts: int) -> Dead:
    """The outcome of a task that could not be handled. It says that the agent is not at fault."""
    failure = Failure.of(error)
    told = Failure.told(
        "WorkerFailed",
        f"Warren failed {tries} times to handle this task, which is no fault of its agent: "
        f"{failure.error_type}: {failure.message}",
    )
    told = replace(told, traceback=failure.traceback, fingerprint=failure.fingerprint)
    now = datetime.now(UTC)
    return Dead("exhausted", told, attempts, now, now)
