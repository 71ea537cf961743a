"""Mapping between outcomes and the rows of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from warren.bus.delivery import Delivery
from warren.bus.messages import Key, parcel_of
from warren.errors import StoreRefused
from warren.store.commit_group import Entry
from warren.store.run_writes import Postponed
from warren.store.schema import LARGEST, SUCCEEDED, fitting, one_of, tasks
from warren.store.stored_message import Setback
from warren.support.failure import Failure
from warren.support.times import moment
from warren.worker.outcome import Cancelled, Dead, Outcome, RetryLater, Succeeded
from warren_schemas import DeadLetterHeaders, Reason, Task


def begun(task: Task, key: Key, worker_id: str) -> Entry:
    """The entry of a run that has not ended and has taken no fence."""
    return Entry(
        task_id=key.task_id,
        life=fitting(key.replay, tasks.c.life),
        agent_type=task.agent_type,
        user_id=fitting(task.user_id, tasks.c.user_id),
        status="running",
        fence=0,
        attempts=0,
        worker_id=worker_id,
    )


def ended(
    run: Entry, outcome: Succeeded | Dead, delivery: Delivery | None = None, task: Task | None = None
) -> Entry:
    """The entry of a run with its end. A dead task keeps its message, so that it can be replayed."""
    if isinstance(outcome, Succeeded):
        return Entry(
            run.task_id,
            run.life,
            run.agent_type,
            run.user_id,
            SUCCEEDED,
            run.fence,
            min(outcome.attempts, LARGEST),
            run.worker_id,
            outcome.result,
        )
    return replace(
        run,
        status="dead",
        attempts=min(outcome.attempts, LARGEST),
        reason=outcome.reason,
        error_type=outcome.failure.error_type,
        error_message=outcome.failure.message,
        traceback=outcome.failure.traceback,
        fingerprint=outcome.failure.fingerprint,
        first_failed_at=outcome.first_failed_at.timestamp(),
        last_failed_at=outcome.last_failed_at.timestamp(),
        parcel=None if delivery is None or task is None else parcel_of(delivery, task),
        created_at=None if task is None or task.created_at is None else task.created_at.timestamp(),
    )


def postponed(run: Entry, later: RetryLater, delivery: Delivery, task: Task) -> Postponed:
    """The write for a task that waits in the store until it is due."""
    return Postponed(run, later.due_at, later.attempts, parcel_of(delivery, task), setback(later))


def failure_record(dead: Dead, worker_id: str) -> DeadLetterHeaders:
    """The failure record for the headers of a dead letter."""
    return DeadLetterHeaders(
        reason=dead.reason,
        error_type=dead.failure.error_type,
        error_message=dead.failure.message,
        traceback=dead.failure.traceback,
        attempts=dead.attempts,
        first_failed_at=dead.first_failed_at,
        last_failed_at=dead.last_failed_at,
        worker=worker_id,
        fingerprint=dead.failure.fingerprint,
    )


def unwritable(attempts: int, error: StoreRefused) -> Dead:
    """The outcome of a task whose values the store refuses."""
    now = datetime.now(UTC)
    return Dead("invalid", Failure.told("StoreRefused", str(error)), attempts, now, now)


def setback(later: RetryLater) -> Setback | None:
    """The failure after which a task waits; None if it only was not due yet."""
    failure, first, last = later.failure, later.first_failed_at, later.last_failed_at
    if failure is None or first is None or last is None:
        return None
    return Setback(
        error_type=fitting(failure.error_type, tasks.c.error_type),
        error_message=fitting(failure.message, tasks.c.error_message),
        traceback=fitting(failure.traceback, tasks.c.traceback),
        fingerprint=failure.fingerprint,
        first_failed_at=first.timestamp(),
        last_failed_at=last.timestamp(),
    )


def kept(row: Mapping[str, Any]) -> Outcome:
    """The outcome that a row of the ledger records."""
    if row["status"] == "succeeded":
        return Succeeded(row["result"], row["attempts"])
    if row["status"] == "cancelled":
        return Cancelled(row["attempts"])
    # A task that the broker dead-lettered by itself has no error and no times of failures.
    last = row["last_failed_at"] or row["finished_at"]
    return Dead(
        reason=one_of(row["reason"], get_args(Reason), "rejected"),
        failure=Failure(
            row["error_type"] or "",
            row["error_message"] or "",
            row["traceback"] or "",
            row["fingerprint"] or "",
        ),
        attempts=row["attempts"],
        first_failed_at=moment(row["first_failed_at"] or last),
        last_failed_at=moment(last),
    )
