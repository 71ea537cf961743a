"""The fleet as Prometheus reads it, and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from warren import Settings
from warren.bus.connection import QueueState
from warren.fleet.metrics import Metrics
from warren.fleet.snapshot import Sight
from warren.store.statistics import StoreSight
from warren_schemas import Event, State

SINCE = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
SIGHT = Sight(
    broker_is_up=True,
    queues={"browse": QueueState(7, 2)},
    has_store=True,
    store=StoreSight(dead={"old": 3}, waiting=5, due=2, lag_s=1.5, paused=frozenset({"sum"})),
)


def told(worker_id: str, state: State = "heartbeat", by: str = "", **details: Any) -> Event:
    return Event(
        version=1, event_id=uuid4(), at=SINCE, kind="worker", subject=worker_id, state=state,
        worker_id=by or worker_id, details=details,
    )  # fmt: skip


def beat(worker_id: str, succeeded: int = 0, **details: Any) -> Event:
    tally = {
        "started_at": (SINCE + timedelta(seconds=1)).isoformat(),
        "agent_types": {
            "browse": {
                "totals": {"succeeded": succeeded, "retried": 1},
                "run": {"buckets": {"0.5": succeeded}, "sum_s": 0.4 * succeeded},
            }
        },
        "commit": {"buckets": {"0.01": 1}, "sum_s": 0.008},
        "reconnects": {"consuming": 2, "publishing": 0},
    }
    report: dict[str, Any] = {
        "interval_s": 5,
        "prefetch": 200,
        "running": {"browse": 3},
        "awaiting_agent": {"browse": 1},
        "breakers": {"browse": "open"},
        "agents": {"browse": {"busy": 3}},
        "loop_lag_s": 0.2,
        "memory_bytes": 1000,
        "store_is_up": True,
    }
    return told(worker_id, **(report | {"tally": tally} | details))


def metrics_of(*events: Event, now: float = 0) -> Metrics:
    metrics = Metrics(Settings(queue_capacity=100), SINCE)
    for event in events:
        metrics.take(event, now)
    return metrics


def samples(metrics: Metrics, sight: Sight = SIGHT, now: float = 0) -> dict[tuple[str, str], float]:
    """Every sample by its name and its labels' values, as Prometheus' own parser reads them."""
    text = metrics.exposition(sight, now).decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_two_workers_are_one_fleet() -> None:
    found = samples(metrics_of(beat("a", 4), beat("b", 6)))
    assert found["warren_tasks_total", "browse,succeeded"] == 10
    assert found["warren_tasks_total", "browse,dead"] == 0  # there from the start, so that it can rise
    assert found["warren_task_retries_total", "browse"] == 2
    assert found["warren_task_run_seconds_bucket", "browse,0.25"] == 0
    assert found["warren_task_run_seconds_bucket", "browse,0.5"] == 10
    assert found["warren_task_run_seconds_count", "browse"] == 10
    assert found["warren_task_run_seconds_sum", "browse"] == 4
    assert found["warren_store_commit_seconds_count", ""] == 2
    assert found["warren_reconnects_total", "consuming"] == 4
    assert found["warren_tasks_running", "browse"] == 6
    assert found["warren_tasks_awaiting_agent", "browse"] == 2
    assert found["warren_breakers", "browse,open"] == 2
    assert found["warren_breakers", "browse,closed"] == 0
    assert found["warren_agents", "browse,busy"] == 6
    assert found["warren_agent_type_workers", "browse"] == 2
    assert found["warren_workers", "up"] == 2
    assert found["warren_prefetch_tasks", ""] == 400
    assert found["warren_worker_loop_lag_seconds", "a"] == 0.2
    assert found["warren_worker_store_up", "b"] == 1


def test_what_is_looked_at_is_there_without_any_worker() -> None:
    found = samples(metrics_of())
    assert (found["warren_queue_messages", "browse"], found["warren_queue_consumers", "browse"]) == (7, 2)
    assert found["warren_queue_capacity", "browse"] == 100
    assert (found["warren_dead_letters", "old"], found["warren_dead_letters", "browse"]) == (3, 0)
    assert found["warren_agent_type_paused", "sum"] == 1
    assert (found["warren_store_up", ""], found["warren_broker_up", ""]) == (1, 1)
    assert (found["warren_store_due_tasks", ""], found["warren_store_waiting_tasks", ""]) == (2, 5)
    assert found["warren_relay_lag_seconds", ""] == 1.5


def test_what_cannot_be_seen_is_left_out_but_for_that() -> None:
    found = samples(metrics_of(beat("a")), Sight(has_store=True))
    assert (found["warren_store_up", ""], found["warren_broker_up", ""]) == (0, 0)
    assert not {name for name, _ in found} & {"warren_dead_letters", "warren_queue_messages"}
    assert ("warren_store_up", "") not in samples(metrics_of(), Sight())  # nobody wants one


def test_a_lost_worker_is_counted_once_and_its_counts_stay() -> None:
    metrics = metrics_of(beat("a", 4), beat("b", 6), told("a", "lost", by="b"), told("a", "lost", by="c"))
    found = samples(metrics)
    assert found["warren_workers_lost_total", ""] == 1
    assert (found["warren_workers", "up"], found["warren_tasks_total", "browse,succeeded"]) == (1, 10)
    assert ("warren_worker_memory_bytes", "a") not in found
    metrics.take(beat("a", 5), 1)  # it was only cut off
    assert samples(metrics)["warren_tasks_total", "browse,succeeded"] == 11


def test_where_nobody_is_left_to_announce_it_we_notice() -> None:
    metrics = metrics_of(beat("a", 4))
    assert samples(metrics, now=16)["warren_workers", "silent"] == 1
    found = samples(metrics, now=31)
    assert (found["warren_workers", "silent"], found["warren_workers_lost_total", ""]) == (0, 1)
    assert samples(metrics, now=32)["warren_workers_lost_total", ""] == 1


def test_time_in_which_we_did_not_listen_is_held_against_nobody() -> None:
    metrics = metrics_of(beat("a"))
    metrics.excuse(100)
    assert samples(metrics, now=110)["warren_workers", "up"] == 1


def test_a_stop_is_no_loss() -> None:
    metrics = metrics_of(beat("a", 4), told("a", "stopped"))
    found = samples(metrics, now=1000)
    assert (found["warren_workers_lost_total", ""], found["warren_workers", "up"]) == (0, 0)
    assert found["warren_agent_type_workers", "browse"] == 0


def test_labels_may_hold_anything() -> None:
    sight = Sight(queues={'a"\\\n': QueueState(1, 0)})
    assert samples(metrics_of(), sight)["warren_queue_messages", 'a"\\\n'] == 1


def test_the_json_has_the_same_numbers_and_quantiles() -> None:
    found: Any = metrics_of(beat("a", 4), beat("b", 6)).as_json(SIGHT, 0)
    browse = found["agent_types"]["browse"]
    assert (browse["tasks"]["succeeded"], browse["retried"], browse["running"]) == (10, 2, 6)
    assert browse["run"] == {
        "count": 10, "mean_s": 0.4, "p50_s": 0.375, "p90_s": 0.475, "p99_s": 0.4975,
    }  # fmt: skip
    assert browse["wait"] == {"count": 0, "mean_s": None, "p50_s": None, "p90_s": None, "p99_s": None}
    assert browse["queue"] == {"messages": 7, "consumers": 2, "capacity": 100}
    assert found["agent_types"]["old"]["dead_letters"] == 3
    assert found["agent_types"]["sum"]["is_paused"] is True
    assert found["workers"] == {"up": 2, "draining": 0, "silent": 0, "lost": 0}
    assert found["store"] == {"waiting": 5, "due": 2, "relay_lag_s": 1.5}
