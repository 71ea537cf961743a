"""What a fleet has counted: workers come, go and are killed, and events arrive as they like."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren.fleet.counters import Tally
from warren.fleet.totals import REMEMBERED, FleetTotals
from warren.worker.outcome import Cancelled, Released, Stale, Succeeded, Superseded
from warren_schemas import Event, State

SINCE = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
BEFORE, AFTER = SINCE - timedelta(hours=1), SINCE + timedelta(seconds=1)


def told(
    worker_id: str, state: State = "heartbeat", *, started_at: datetime = AFTER, **totals: float
) -> Event:
    """A heartbeat of a worker with one agent type."""
    tally = {"started_at": started_at.isoformat(), "agent_types": {"browse": {"totals": totals}}}
    return event(worker_id, state, {} if state == "started" else {"tally": tally})


def event(worker_id: str, state: State, details: dict[str, Any]) -> Event:
    return Event(
        version=1, event_id=uuid4(), at=SINCE, kind="worker", subject=worker_id, state=state,
        worker_id=worker_id, details=details,
    )  # fmt: skip


def totals_of(*events: Event) -> FleetTotals:
    totals = FleetTotals(SINCE)
    for one in events:
        totals.take(one)
    return totals


def test_workers_are_added_up_and_those_that_are_killed_stay() -> None:
    totals = totals_of(told("a", succeeded=3), told("b", succeeded=4), told("b", succeeded=5))
    assert totals.count("browse", "succeeded") == 8  # and b was killed just now
    totals.take(told("b2", succeeded=1))  # its successor has an id of its own
    assert totals.count("browse", "succeeded") == 9


def test_last_words_make_it_exact() -> None:
    totals = totals_of(told("a", succeeded=3), told("a", "stopped", succeeded=7), told("a", succeeded=5))
    assert totals.count("browse", "succeeded") == 7


def test_what_the_store_has_of_a_killed_worker_counts_once() -> None:
    totals = totals_of(told("a", succeeded=3, dead=2))
    for _ in range(2):
        totals.ended("a", {("browse", "succeeded"): 5, ("browse", "dead"): 1, ("fetch", "dead"): 1})
    assert (totals.count("browse", "succeeded"), totals.count("browse", "dead")) == (5, 2)
    assert totals.count("fetch", "dead") == 1
    totals.take(told("a", succeeded=6))  # it was not dead after all
    assert totals.count("browse", "succeeded") == 6


def test_what_the_store_has_of_a_worker_that_nobody_heard_is_not_ours() -> None:
    totals = totals_of(told("a", started_at=BEFORE, succeeded=1000))
    totals.ended("a", {("browse", "succeeded"): 1002})
    totals.ended("b", {("browse", "succeeded"): 7})
    assert totals.count("browse", "succeeded") == 2


def test_what_was_before_us_is_not_ours() -> None:
    totals = totals_of(told("a", started_at=BEFORE, succeeded=1000))
    assert totals.count("browse", "succeeded") == 0
    assert totals.agent_types == {"browse"}
    totals.take(told("a", started_at=BEFORE, succeeded=1004, dead=1))
    assert (totals.count("browse", "succeeded"), totals.count("browse", "dead")) == (4, 1)


def test_whose_start_was_heard_counts_from_it_whatever_its_clock_says() -> None:
    totals = totals_of(told("a", "started"), told("a", started_at=BEFORE, succeeded=2))
    assert totals.count("browse", "succeeded") == 2


def test_a_start_that_comes_late_takes_nothing_back() -> None:
    totals = totals_of(told("a", succeeded=2), told("a", "started"), told("a", succeeded=3))
    assert totals.count("browse", "succeeded") == 3


@pytest.mark.parametrize(
    "tally",
    [
        {"agent_types": {}},
        {"started_at": "soon"},
        {"started_at": AFTER.isoformat(), "agent_types": {"browse": {"totals": {"succeeded": -1}}}},
        {"started_at": AFTER.isoformat(), "commit": {"buckets": {"many": 1}}},
        "much",
    ],
)
def test_a_tally_that_makes_no_sense_changes_nothing(tally: Any) -> None:
    totals = totals_of(told("a", succeeded=2), event("a", "heartbeat", {"tally": tally}))
    assert totals.numbers == {("count", "browse", "succeeded"): 2} | {
        (which, name, "sum"): 0 for which, name in (("run", "browse"), ("wait", "browse"), ("commit", ""))
    }


def test_a_worker_that_tells_no_tally_counts_nothing() -> None:
    assert totals_of(event("a", "heartbeat", {"totals": {"succeeded": 3}})).numbers == {}


def test_no_more_is_remembered_of_the_gone_than_helps() -> None:
    totals = totals_of(*(told(f"w{number}", succeeded=1) for number in range(REMEMBERED + 5)))
    assert totals.count("browse", "succeeded") == REMEMBERED + 5
    assert len(totals._heard) == REMEMBERED


def test_the_tally_of_a_worker_arrives_whole() -> None:
    tally = Tally()
    meter = tally.of("browse")
    for outcome in (Succeeded(b"1", 1), Cancelled(0), Superseded(), Stale()):
        meter.totals.count(outcome.name)
    meter.totals.count(Released(0, tried=False, probe=False, reason="shutdown").name)
    meter.times.run.observe(0.2)
    meter.times.wait.observe(3)
    tally.of("sum").totals.count(Succeeded(b"1", 1).name)
    assert tally.totals.succeeded == 2
    totals = totals_of(event("a", "started", {}), event("a", "heartbeat", {"tally": tally.as_json()}))
    counted = {name: totals.count("browse", name) for name in tally.totals.as_json()}
    assert Counter(counted) == Counter(succeeded=1, cancelled=1, released=1, superseded=1, stale=1)
    buckets, seconds = totals.buckets("run", "browse")
    assert ({label: count for label, count in buckets.items() if count}, seconds) == ({"0.25": 1}, 0.2)
    assert totals.buckets("wait", "browse")[1] == 3


growing = st.lists(st.integers(0, 50), min_size=1, max_size=8).map(sorted)


@given(
    lives=st.dictionaries(st.sampled_from("abcd"), growing, min_size=1),
    new=st.booleans(),
    data=st.data(),
)
def test_whatever_the_order_nothing_goes_down_and_the_end_is_exact(
    lives: dict[str, list[int]], new: bool, data: st.DataObject
) -> None:
    """Each worker's first heartbeat comes first; then they come twice, late, or not, but for the last one."""
    started_at = AFTER if new else BEFORE
    first = [told(name, started_at=started_at, succeeded=life[0]) for name, life in lives.items()]
    rest = [
        told(name, started_at=started_at, succeeded=count) for name, life in lives.items() for count in life
    ]
    last = [told(name, "stopped", started_at=started_at, succeeded=life[-1]) for name, life in lives.items()]
    some = data.draw(st.lists(st.sampled_from(rest)))
    totals, before = totals_of(*first), 0.0
    for one in data.draw(st.permutations(some + last)):
        totals.take(one)
        now = totals.count("browse", "succeeded")
        assert now >= before
        before = now
    assert before == sum(life[-1] - (0 if new else life[0]) for life in lives.values())
