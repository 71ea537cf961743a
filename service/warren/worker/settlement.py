"""Settlement plans: what to write, publish and acknowledge for the outcome of a run.

`Planner.plan` is a pure function. It decides what is written, what is published, and how the deliveries are
settled. The committer carries that out, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias
from uuid import UUID

from pydantic import JsonValue

from warren.bus.connection import Headers, Message
from warren.bus.delivery import Delivery
from warren.bus.messages import LAST_IN_LINE, Key, again, dead_message, dispatch_of
from warren.bus.replies import cancelled_body, dead_body, id_of_what_is_no_task, result_body
from warren.bus.topology import Names
from warren.settings import Settings
from warren.store.commit_group import Entry
from warren.store.run_writes import Cancellation, GivenBack, Write
from warren.support.tracing import carried_context
from warren.worker.outcome import (
    Cancelled,
    Dead,
    Outcome,
    Promoted,
    Released,
    RetryLater,
    Stale,
    Succeeded,
    Superseded,
)
from warren.worker.records import ended, failure_record, postponed
from warren_schemas import State, Task

Ending: TypeAlias = Literal["acknowledge", "give back", "step back"]
"""How the deliveries are settled. `step back`: a newer run has the task, and the deliveries go back too."""


@dataclass(slots=True, eq=False)
class Subject:
    """The subject of a settlement: all deliveries of one task in this worker.

    `task` is None for a message that is not a task. The outcome is written to the row of `record`. `record`
    is None without a store, if the row has the outcome already (`is_recorded`), and if the row belongs to
    another task. `has_row`: the store has a row with the status running. `key` is set for a run in `Runs`.
    `trace` is the trace context of the run.
    """

    agent_type: str
    task: Task | None
    deliveries: list[Delivery]
    record: Entry | None = None
    has_row: bool = False
    is_recorded: bool = False
    key: Key | None = None
    trace: Headers | None = None

    @property
    def task_id(self) -> UUID:
        """The id of the task, or the likely id for a message that is not a task."""
        return id_of_what_is_no_task(self.deliveries[0]) if self.task is None else self.task.task_id

    @property
    def live_one(self) -> Delivery:
        """The delivery that represents the task: the last one with the highest dispatch number.

        A run may have adopted an older message. A new publication based on that one would be stale.
        """
        return max(reversed(self.deliveries), key=lambda delivery: dispatch_of(delivery.headers))


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """The event to publish about the task."""

    state: State
    details: dict[str, JsonValue]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply with the result. `wanted` are its destinations, each a queue and a correlation id."""

    body: bytes
    wanted: frozenset[tuple[str, str | None]]
    headers: Headers


@dataclass(slots=True)
class Settlement:
    """The steps that settle a run, in the order of the fields.

    `write` comes first. The other steps happen only if the write counts. `dead_letter`, `answer` and `copy`
    are published and confirmed. `copy` is the task itself, behind others of its priority; if the queue is
    full, the deliveries are given back instead. `counted_as` is the name of the counter to increment.
    """

    subject: Subject
    outcome: Outcome
    counted_as: str
    write: Write | None = None
    dead_letter: Message | None = None
    answer: Answer | None = None
    event: TaskEvent | None = None
    copy: Message | None = None
    ending: Ending = "acknowledge"
    is_refused: bool = False

    @property
    def is_quick(self) -> bool:
        """Whether only the acknowledgement follows the write."""
        return (
            self.ending == "acknowledge"
            and self.answer is None
            and self.dead_letter is None
            and self.copy is None
        )


class Planner:
    """Plans the settlements of one worker."""

    def __init__(self, names: Names, settings: Settings, worker_id: str) -> None:
        self._names, self._settings, self._worker_id = names, settings, worker_id

    def plan(self, outcome: Outcome, subject: Subject) -> Settlement:
        """The settlement of an outcome: for the store, the broker and the deliveries."""
        settlement = Settlement(subject, outcome, self._counter(outcome, subject))
        match outcome:
            case Succeeded():
                self._succeeded(settlement, outcome)
            case Dead():
                self._died(settlement, outcome)
            case Cancelled():
                self._was_cancelled(settlement, outcome)
            case Released():
                self._was_released(settlement, outcome)
            case RetryLater() if subject.record is not None and subject.task is not None:
                settlement.write = postponed(subject.record, outcome, subject.live_one, subject.task)
            case Superseded():
                settlement.ending = "step back"
            case Promoted():
                settlement.event = TaskEvent("promoted", {"priority": outcome.priority})
            case RetryLater() | Stale():
                pass  # the store has the task, or another message is live: this message is not needed
        return settlement

    def _counter(self, outcome: Outcome, subject: Subject) -> str:
        # The worker that wrote the outcome has counted it.
        is_counted = subject.is_recorded and not isinstance(outcome, Cancelled | Superseded)
        return "adopted" if is_counted else outcome.name

    def _succeeded(self, settlement: Settlement, outcome: Succeeded) -> None:
        subject = settlement.subject
        if subject.record is not None:
            settlement.write = ended(subject.record, outcome)
        if self._settings.task_events:
            settlement.event = TaskEvent("succeeded", {"attempts": outcome.attempts})
        task = subject.task
        assert task is not None
        self._answer(settlement, lambda: result_body(task, outcome.result, outcome.attempts))

    def _died(self, settlement: Settlement, dead: Dead) -> None:
        subject = settlement.subject
        delivery, task = subject.deliveries[0], subject.task
        if subject.record is not None and task is not None:
            settlement.write = ended(subject.record, dead, delivery, task)
        record = failure_record(dead, self._worker_id)
        settlement.dead_letter = dead_message(delivery, record, subject.agent_type, self._names)
        body = partial(dead_body, subject.task_id, dead.reason, dead.failure, dead.attempts)
        self._answer(settlement, body)
        settlement.event = TaskEvent("dead", _details_of(dead, subject), dead.reason)

    def _was_cancelled(self, settlement: Settlement, cancelled: Cancelled) -> None:
        subject = settlement.subject
        if subject.record is not None:
            settlement.write = Cancellation(subject.record)
        self._answer(settlement, lambda: cancelled_body(subject.task_id, cancelled.attempts))
        settlement.event = TaskEvent("cancelled", {"attempts": cancelled.attempts})

    def _was_released(self, settlement: Settlement, released: Released) -> None:
        subject = settlement.subject
        delivery, task = subject.live_one, subject.task
        assert task is not None
        if subject.record is not None and (subject.has_row or not delivery.counted):
            # The row must say that the task was released. Otherwise the next worker would count a crash: a
            # classic queue marks every returned message as redelivered, a quorum queue never resets its count
            # of lost deliveries, and an existing row would still say running.
            settlement.write = GivenBack(subject.record)
        settlement.event = TaskEvent("released", {"attempts": released.attempts}, released.reason)
        # The broker delivers a message again whose channel is gone, so a new copy would be a duplicate. But
        # if its queue was deleted, the new copy is the only one.
        if delivery.comes_back and not (released.tried and delivery.is_live):
            settlement.ending = "give back"
        else:
            settlement.copy = again(
                task,
                delivery,
                self._names,
                self._settings,
                attempts=released.attempts,
                priority=LAST_IN_LINE if released.probe else None,
            )

    def _answer(self, settlement: Settlement, body: Callable[[], bytes]) -> None:
        """Plan a reply to each queue named in `reply_to`. Most tasks name none."""
        deliveries = settlement.subject.deliveries
        wanted = frozenset(
            (delivery.properties.reply_to, delivery.properties.correlation_id)
            for delivery in deliveries
            if delivery.properties.reply_to
        )
        if wanted:
            headers = carried_context(deliveries[0].headers) | (settlement.subject.trace or {})
            settlement.answer = Answer(body(), wanted, headers)


def _details_of(dead: Dead, subject: Subject) -> dict[str, JsonValue]:
    if subject.task is None:
        return {
            "message_id": subject.deliveries[0].properties.message_id,
            "error": dead.failure.message,
        }
    return {"attempts": dead.attempts, "error": dead.failure.error_type}
