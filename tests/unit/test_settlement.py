"""What each outcome means for the store, the broker and the deliveries: the whole table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from aiormq import spec

from warren.bus.connection import Message
from warren.bus.delivery import Delivery
from warren.bus.messages import LAST_IN_LINE, key_of, new_id
from warren.bus.topology import Names
from warren.settings import Settings
from warren.store.commit_group import Entry
from warren.store.run_writes import Cancellation, GivenBack, Postponed
from warren.support.failure import Failure
from warren.worker.outcome import (
    BREAKER_OPEN,
    SHUTDOWN,
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
from warren.worker.records import begun
from warren.worker.settlement import Planner, Settlement, Subject
from warren_schemas import AMQP_PRIORITY, Result, Task

NOW: Final = datetime.now(UTC)
FAILURE: Final = Failure("ValueError", "no", "Traceback …", "f" * 16)
TASK: Final = Task(version=1, task_id=new_id(), agent_type="greet", user_id="ada", payload=1)
SETTINGS: Final = Settings(task_events=True)
PLANNER: Final = Planner(Names("warren"), SETTINGS, "worker-1")

SUCCEEDED: Final = Succeeded(b'"Hello"', 1)
DEAD: Final = Dead("exhausted", FAILURE, 4, NOW, NOW)
LATER: Final = RetryLater(NOW.timestamp() + 60, 2, FAILURE, NOW, NOW)
NOT_TRIED: Final = Released(0, tried=False, probe=False, reason=SHUTDOWN)
TRIED: Final = Released(0, tried=True, probe=False, reason=BREAKER_OPEN)
PROBE: Final = Released(0, tried=True, probe=True, reason=BREAKER_OPEN)


def delivery_of(*, reply_to: str | None = None, live: bool = True, comes_back: bool = True) -> Delivery:
    """A delivery on a channel that is open, or was lost."""
    acknowledgements = SimpleNamespace(is_open=live, queue_gone=not comes_back, delivered=lambda _tag: None)
    properties = spec.Basic.Properties(
        message_id=str(TASK.task_id), headers={}, priority=4, reply_to=reply_to, correlation_id="c"
    )
    message = SimpleNamespace(
        body=TASK.model_dump_json().encode(),
        header=SimpleNamespace(properties=properties),
        redelivered=False,
        routing_key="greet",
        delivery_tag=1,
        consumer_tag="c",
    )
    return Delivery(
        "warren.tasks.greet",
        cast("Any", message),
        cast("Any", acknowledgements),
        lambda _: None,
        counted=True,
    )


def plan(
    outcome: Outcome, *, store: bool, asks: bool, live: bool, comes_back: bool = True, **known: Any
) -> Settlement:
    """The settlement of a run that had a row, where there is a store."""
    delivery = delivery_of(reply_to="replies" if asks else None, live=live, comes_back=comes_back)
    record = begun(TASK, key_of(TASK, {}), "worker-1") if store else None
    return PLANNER.plan(outcome, Subject("greet", TASK, [delivery], record, has_row=store, **known))


@dataclass(frozen=True)
class Expected:
    """A row of the table. What is written, with a store; the rest, with and without one."""

    write: type | None
    ending: str
    letter: bool = False
    answer: str | None = None
    event: str | None = None
    copy: bool = False


def expected(outcome: Outcome, *, live: bool) -> Expected:
    """The table."""
    table = {
        id(SUCCEEDED): Expected(Entry, "acknowledge", answer="succeeded", event="succeeded"),
        id(DEAD): Expected(Entry, "acknowledge", letter=True, answer="dead", event="dead"),
        id(CANCELLED): Expected(Cancellation, "acknowledge", answer="cancelled", event="cancelled"),
        id(LATER): Expected(Postponed, "acknowledge"),
        id(STALE): Expected(None, "acknowledge"),
        id(PROMOTED): Expected(None, "acknowledge", event="promoted"),
        id(SUPERSEDED): Expected(None, "step back"),
        id(NOT_TRIED): Expected(GivenBack, "give back", event="released"),
        # A delivery that is lost comes back by itself: a copy would be a second one.
        id(TRIED): Expected(GivenBack, "acknowledge" if live else "give back", event="released", copy=live),
        id(PROBE): Expected(GivenBack, "acknowledge" if live else "give back", event="released", copy=live),
    }
    return table[id(outcome)]


CANCELLED: Final = Cancelled(1)
STALE: Final = Stale()
PROMOTED: Final = Promoted(6)
SUPERSEDED: Final = Superseded()
OUTCOMES: Final = (
    SUCCEEDED, DEAD, CANCELLED, LATER, STALE, PROMOTED, SUPERSEDED, NOT_TRIED, TRIED, PROBE,
)  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "store", "asks", "live"), list(product(OUTCOMES, (True, False), (True, False), (True, False)))
)
def test_the_table(outcome: Outcome, store: bool, asks: bool, live: bool) -> None:
    row, settlement = expected(outcome, live=live), plan(outcome, store=store, asks=asks, live=live)
    assert type(settlement.write) is (row.write if store and row.write else type(None))
    assert settlement.ending == row.ending
    assert (settlement.dead_letter is not None) == row.letter
    assert (settlement.copy is not None) == row.copy
    assert (settlement.event and settlement.event.state) == row.event
    assert settlement.counted_as == outcome.name
    if row.answer is None or not asks:
        assert settlement.answer is None
    else:
        assert settlement.answer is not None
        assert settlement.answer.wanted == {("replies", "c")}
        result = Result.model_validate_json(settlement.answer.body)
        assert (result.status, result.task_id) == (row.answer, TASK.task_id)


def test_a_dead_task_is_written_with_what_it_takes_to_run_it_again() -> None:
    settlement = plan(DEAD, store=True, asks=True, live=True)
    end = settlement.write
    assert isinstance(end, Entry)
    assert end.parcel is not None
    assert Task.model_validate_json(end.parcel.body) == TASK
    assert (end.parcel.reply_to, end.parcel.correlation_id, end.parcel.priority) == ("replies", "c", 4)
    assert isinstance(settlement.dead_letter, Message)
    assert settlement.dead_letter.headers["warren-error-type"] == "ValueError"


def test_a_failed_probe_goes_behind_everything_that_waits() -> None:
    probe, tried = (plan(one, store=True, asks=False, live=True).copy for one in (PROBE, TRIED))
    assert probe is not None
    assert tried is not None
    assert (probe.priority, tried.priority) == (LAST_IN_LINE, AMQP_PRIORITY["medium"])


def test_of_a_queue_that_was_deleted_a_copy_is_all_that_is_left() -> None:
    settlement = plan(NOT_TRIED, store=True, asks=False, live=False, comes_back=False)
    assert settlement.copy is not None
    assert settlement.ending == "acknowledge"


def test_without_a_row_only_a_broker_that_cannot_count_needs_one() -> None:
    for counted in (True, False):
        delivery = delivery_of()
        delivery.counted = counted
        record = begun(TASK, key_of(TASK, {}), "worker-1")
        settlement = PLANNER.plan(NOT_TRIED, Subject("greet", TASK, [delivery], record))
        assert isinstance(settlement.write, GivenBack) == (not counted)


@pytest.mark.parametrize("outcome", [SUCCEEDED, DEAD, STALE])
def test_an_outcome_that_is_recorded_is_told_again_but_not_counted(outcome: Outcome) -> None:
    settlement = plan(outcome, store=False, asks=True, live=True, is_recorded=True)
    assert settlement.counted_as == "adopted"
    assert settlement.write is None


def test_copies_of_one_task_are_answered_each_and_once() -> None:
    deliveries = [delivery_of(reply_to=name) for name in ("a", "b", "a")]
    settlement = PLANNER.plan(SUCCEEDED, Subject("greet", TASK, deliveries))
    assert settlement.answer is not None
    assert settlement.answer.wanted == {("a", "c"), ("b", "c")}


def test_a_message_that_is_no_task_is_buried_and_answered() -> None:
    subject = Subject("greet", None, [delivery_of(reply_to="replies")])
    settlement = PLANNER.plan(Dead("invalid", FAILURE, 0, NOW, NOW), subject)
    assert settlement.write is None
    assert settlement.dead_letter is not None
    assert settlement.answer is not None
    assert settlement.event is not None
    assert settlement.event.details["message_id"] == str(TASK.task_id)
