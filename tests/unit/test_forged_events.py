"""Anyone who may publish events can forge them: what the fleet shows, and its memory, stay within bounds."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tests.unit.test_metrics import SIGHT, beat, metrics_of, samples, told
from warren.fleet import membership as peers_module
from warren.fleet.event_reader import LARGEST, LARGEST_REPORT, LONGEST_REASON, EventReader
from warren.fleet.membership import MISSED, MOST, Peers
from warren.fleet.overview import overview
from warren.fleet.totals import MOST_AGENT_TYPES, FleetTotals
from warren_schemas import Event

HUGE = 10**400
LONG = "x" * 300
SINCE = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
STARTED = (SINCE + timedelta(seconds=1)).isoformat()


def tally(**fields: Any) -> dict[str, Any]:
    return {"tally": {"started_at": STARTED, **fields}}


@pytest.mark.parametrize(
    "details",
    [
        {"interval_s": 1e300},
        {"interval_s": 1e-300},
        {"prefetch": HUGE},
        {"memory_bytes": HUGE},
        {"memory_bytes": -1},
        {"loop_lag_s": 1.7e308},
        {"running": {LONG: 1}},
        {"running": {"a b\n": 1}},
        {"running": {"browse": HUGE}},
        {"running": {f"t{number}": 1 for number in range(1001)}},
        {"waiting": {"browse": -1}},
        {"awaiting_agent": {"browse": 1e308}},
        {"breakers": {"browse": "\x1b[31mopen"}},
        {"agents": {"browse": {f"s{number}": 1 for number in range(65)}}},
        {"paused": ["browse"] * 1001},
        {"totals": {"succeeded": 1.7e308}},
        tally(agent_types={"browse": {"totals": {"succeeded": 1.7e308}}}),
        tally(agent_types={LONG: {"totals": {"succeeded": 1}}}),
        tally(agent_types={"browse": {"run": {"buckets": {"nan": 1}}}}),
        tally(agent_types={"browse": {"run": {"buckets": {"-1": 1}}}}),
        tally(agent_types={"browse": {"run": {"buckets": {f"{number}": 1 for number in range(65)}}}}),
        tally(commit={"sum_s": 1e300}),
        tally(reconnects={"consuming": -1}),
        {"tally": [[[[]]]]},
        {"agents": [[], {}]},
    ],
    ids=lambda details: str(details)[:50],
)
def test_a_forged_heartbeat_changes_no_number(details: dict[str, Any]) -> None:
    metrics = metrics_of(beat("a", 4))
    before = samples(metrics)
    metrics.take(told("a", **details), 0)
    after = samples(metrics)
    refused = {key for key in after if key[0] == "warren_events_refused_total"}
    assert {key: value for key, value in after.items() if key not in refused} == {
        key: value for key, value in before.items() if key not in refused
    }
    assert sum(after[key] for key in refused) > 0
    json.dumps(metrics.as_json(SIGHT, 0), allow_nan=False)
    overview(metrics.peers, 0).model_dump_json()


def test_a_forged_worker_leaves_after_three_of_its_heartbeats() -> None:
    metrics = metrics_of(told("made-up", interval_s=300))
    assert samples(metrics, now=901)["warren_workers", "silent"] == 1
    assert samples(metrics, now=1801)["warren_workers", "silent"] == 0


def test_of_made_up_workers_those_heard_longest_ago_are_forgotten() -> None:
    peers = Peers(5)
    for number in range(MOST + 10):
        peers.take(told(f"w{number}"), number / 10_000)
        peers.take(told("real"), number / 10_000)
    known = {peer.worker_id for peer in peers}
    assert len(known) == MOST
    assert "real" in known
    assert "w0" not in known


def test_large_heartbeats_share_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "MOST_VALUES", 1000)
    peers = Peers(5)
    for number in range(20):
        peers.take(told(f"w{number}", running={f"t{name}": 1 for name in range(100)}), 0)
    assert 5 < len(peers) < 10
    peers.take(told("w19", running={}), 0)  # what it held before is free again
    for number in range(100, 102):
        peers.take(told(f"w{number}", running={}), 0)
    assert len(peers) >= 9


def test_a_worker_that_lives_comes_back_after_a_forged_stop() -> None:
    peers = Peers(5)
    peers.take(told("a"), 0)
    peers.take(told("a", "stopped", by="made-up"), 1)
    peers.take(told("a"), 2)
    assert len(peers) == 0
    peers.take(told("a"), 2 + MISSED * 5)
    assert len(peers) == 1


def test_made_up_agent_types_push_out_one_another() -> None:
    totals = FleetTotals(SINCE)
    for number in range(30):
        types = {f"t{number}-{name}": {"totals": {"succeeded": 1}} for name in range(100)}
        totals.take(told(f"w{number}", **tally(agent_types=types)))
        totals.take(told("real", **tally(agent_types={"browse": {"totals": {"succeeded": number}}})))
    assert len(totals.agent_types) == MOST_AGENT_TYPES
    assert totals.count("browse", "succeeded") == 29
    assert {key[1] for key in totals.numbers if key[0] == "count"} == totals.agent_types


def test_made_up_names_of_counts_are_not_kept() -> None:
    totals = FleetTotals(SINCE)
    totals.take(
        told(
            "a",
            **tally(
                agent_types={"browse": {"totals": {"made_up": 1, "succeeded": 1}}},
                reconnects={"made_up": 1},
                refused={"made_up": 1, "answers": 2},
            ),
        )
    )
    assert not [key for key in totals.numbers if "made_up" in key]
    assert (totals.count("browse", "succeeded"), totals.refused("answers")) == (1, 2)


def test_made_up_states_are_no_series() -> None:
    found = samples(metrics_of(beat("a", agents={"browse": {"busy": 1, "made_up": 2}})))
    assert found["warren_agents", "browse,busy"] == 1
    assert ("warren_agents", "browse,made_up") not in found


# --- reading ----------------------------------------------------------------------------------------------


def delivery(body: bytes, routing_key: str) -> Any:
    return SimpleNamespace(body=body, routing_key=routing_key)


def of_a_task(**fields: Any) -> Event:
    return Event(
        version=1, event_id=uuid4(), at=SINCE, kind="task", subject="browse", state="progress",
        **fields,
    )  # fmt: skip


def test_an_event_is_what_its_routing_key_says() -> None:
    reader = EventReader()
    forged = told("a").model_dump_json().encode()
    assert reader.read(delivery(forged, "task.browse.progress")) is None
    assert reader.read(delivery(forged, "health.breaker.a.heartbeat")) is None
    assert reader.read(delivery(forged, "health.worker.a.stopped")) is None
    assert reader.refusals.count == 3
    assert reader.read(delivery(forged, "health.worker.a.heartbeat")) is not None
    assert reader.read(delivery(of_a_task().model_dump_json().encode(), "task.browse.progress")) is not None


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b" " * (LARGEST_REPORT + 1), "health.worker.a.heartbeat"),
        (b" " * (LARGEST + 1), "task.browse.progress"),
        (b"[" * 10_000, "task.browse.progress"),
        (b"\xff\x00", "task.browse.progress"),
        (b"null", "task.browse.progress"),
    ],
    ids=["heartbeat too large", "event too large", "too deep", "no text", "no object"],
)
def test_what_is_no_event_is_counted(body: bytes, key: str) -> None:
    reader = EventReader()
    assert reader.read(delivery(body, key)) is None
    assert reader.refusals.count == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_no_number_in_an_event_is_without_end(number: str) -> None:
    body = told("a", loop_lag_s=0.25).model_dump_json().replace("0.25", number).encode()
    assert EventReader().read(delivery(body, "health.worker.a.heartbeat")) is None


def test_a_long_reason_is_cut_off() -> None:
    body = of_a_task(reason="x" * 10_000).model_dump_json().encode()
    event = EventReader().read(delivery(body, "task.browse.progress"))
    assert event is not None
    assert event.reason == "x" * LONGEST_REASON
