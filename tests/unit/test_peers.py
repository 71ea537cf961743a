"""Who is heard, who is silent, who is lost, and what it all looks like together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from warren.fleet.membership import REMEMBERED, Peers
from warren.fleet.overview import overview
from warren_schemas import Event, State

INTERVAL = 5.0
START = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def told(
    worker_id: str, state: State = "heartbeat", *, second: float = 0, by: str = "", **details: Any
) -> Event:
    return Event(
        version=1,
        event_id=uuid4(),
        at=START + timedelta(seconds=second),
        kind="worker",
        subject=worker_id,
        state=state,
        worker_id=by or worker_id,
        details=details,
    )


def ids(peers: Any) -> list[str]:
    return [peer.worker_id for peer in peers]


def peers_of(*events: Event) -> Peers:
    peers = Peers(INTERVAL)
    for event in events:
        peers.take(event, 0)
    return peers


# --- who is there -----------------------------------------------------------------------------------------


def test_three_heartbeats_may_be_missed_and_no_more() -> None:
    peers = peers_of(told("a"), told("b"))
    peers.take(told("b"), 10)
    assert ids(peers.silent(15)) == []
    assert ids(peers.silent(15.1)) == ["a"]
    assert ids(peers.heard(15.1)) == ["b"]


def test_each_is_measured_by_its_own_interval() -> None:
    peers = peers_of(told("slow", interval_s=60), told("quick", interval_s=1), told("old"))
    assert ids(peers.silent(3.1)) == ["quick"]
    assert ids(peers.silent(15.1)) == ["old", "quick"]
    assert ids(peers.silent(180)) == ["old", "quick"]
    assert ids(peers.silent(180.1)) == ["old", "quick", "slow"]


def test_whoever_is_announced_lost_is_not_counted_until_it_is_heard() -> None:
    peers = peers_of(told("a"), told("b"))
    peers.take(told("a", "lost", by="b"), 20)
    assert (ids(peers), peers.lost) == (["b"], ["a"])
    peers.take(told("a", "lost", by="b"), 20)  # an event may come twice
    assert (ids(peers), peers.lost) == (["b"], ["a"])
    peers.take(told("a"), 30)
    assert (ids(peers), peers.lost) == (["a", "b"], [])
    assert ids(peers.silent(30)) == ["b"]


def test_whoever_stopped_is_forgotten_even_if_a_heartbeat_comes_late() -> None:
    peers = peers_of(told("a"), told("a", "draining"), told("a", "stopped"), told("a"))
    assert (len(peers), peers.lost) == (0, [])
    assert peers.silent(1000) == []


def test_no_more_is_remembered_of_the_gone_than_helps() -> None:
    peers = Peers(INTERVAL)
    for number in range(REMEMBERED + 10):
        peers.take(told(f"w{number}"), 0)
        peers.take(told(f"w{number}", "lost"), 0)
    assert len(peers.lost) == REMEMBERED
    assert (peers.lost[0], peers.lost[-1]) == ("w10", f"w{REMEMBERED + 9}")


def test_time_in_which_nobody_listened_is_held_against_nobody() -> None:
    peers = peers_of(told("a"), told("b"))
    peers.excuse(100)
    assert ids(peers.silent(115)) == []
    peers.excuse(50)  # nor does it ever take away
    assert ids(peers.silent(115.1)) == ["a", "b"]


def test_other_events_say_nothing_of_a_worker() -> None:
    event = told("a").model_copy(update={"kind": "breaker", "subject": "browse", "state": "open"})
    assert len(peers_of(event)) == 0


def test_a_heartbeat_that_makes_no_sense_is_a_sign_of_life() -> None:
    peers = peers_of(told("a", running={"browse": 3}))
    peers.take(told("a", running="many", interval_s=-1), 10)
    [peer] = peers
    assert (peer.heard_at, peer.interval, peer.report.running) == (10, INTERVAL, {"browse": 3})


# --- rates ------------------------------------------------------------------------------------------------


def test_rates_are_differences_over_the_time_between_heartbeats() -> None:
    peers = peers_of(told("a", totals={"succeeded": 100, "dead": 1}))
    assert [peer.rates for peer in peers] == [None]
    peers.take(told("a", second=4, totals={"succeeded": 140, "dead": 1, "retried": 2}), 0)
    assert [peer.rates for peer in peers] == [{"succeeded": 10, "retried": 0.5, "dead": 0}]
    peers.take(told("a", second=4, totals={"succeeded": 140, "dead": 1, "retried": 2}), 0)  # the same again
    assert [peer.rates for peer in peers] == [{"succeeded": 10, "retried": 0.5, "dead": 0}]


def test_each_agent_type_has_rates_of_its_own() -> None:
    def tally(**counts: dict[str, int]) -> dict[str, Any]:
        return {"agent_types": {name: {"totals": totals} for name, totals in counts.items()}}

    peers = peers_of(
        told("a", running={"browse": 0, "sum": 0}, tally=tally(browse={"succeeded": 10})),
        told("b", running={"browse": 0}, tally=tally(browse={"succeeded": 7})),
        told("silent", interval_s=1, running={"browse": 0}, tally=tally()),
        told("silent", interval_s=1, second=1, running={"browse": 0}, tally=tally(browse={"dead": 99})),
    )
    assert overview(peers_of(told("a", running={"browse": 0})), 1).agent_types["browse"].rates is None
    # What was counted first in the meantime began with nothing.
    peers.take(
        told(
            "a",
            second=4,
            running={"browse": 0, "sum": 0},
            tally=tally(browse={"succeeded": 30, "retried": 2}, sum={"dead": 1}),
        ),
        4,
    )
    peers.take(told("b", second=2, running={"browse": 0}, tally=tally(browse={"succeeded": 13})), 4)
    seen = overview(peers, 4.5).agent_types
    assert seen["browse"].rates == {"succeeded": 5 + 3, "retried": 0.5, "dead": 0}
    assert seen["sum"].rates == {"succeeded": 0, "retried": 0, "dead": 0.25}


def test_a_worker_that_was_lost_does_not_come_back_with_the_rate_of_its_absence() -> None:
    peers = peers_of(told("a", totals={"succeeded": 100}), told("a", "lost", by="b"))
    peers.take(told("a", second=100, totals={"succeeded": 200}), 100)
    [peer] = peers
    assert peer.rates is None


# --- together ---------------------------------------------------------------------------------------------


def test_the_overview_shows_what_is_paused() -> None:
    peers = peers_of(told("a", breakers={"browse": "closed", "greet": "closed"}, paused=["greet"]))
    lines = overview(peers, 1).agent_types
    assert [name for name, line in lines.items() if line.is_paused] == ["greet"]


def test_the_overview_adds_up_those_that_are_heard() -> None:
    browse: dict[str, Any] = {"interval_s": 5, "prefetch": 200, "memory_bytes": 1, "loop_lag_s": 0.1}
    peers = Peers(INTERVAL)
    peers.take(told("gone", running={"browse": 9}, prefetch=200), 0)
    for second in (20, 30):
        peers.take(
            told(
                "a",
                second=second,
                running={"browse": 2, "sum": 1},
                waiting={"browse": 70 - second},
                breakers={"browse": "open", "sum": "closed"},
                agents={"browse": {"busy": 2, "idle": 1}},
                totals={"succeeded": second, "dead": 1},
                tally={"agent_types": {"browse": {"totals": {"succeeded": second - 10, "dead": 1}}}},
                **browse,
            ),
            second,
        )
    peers.take(
        told(
            "b",
            running={"browse": 3},
            waiting={"browse": 7},
            breakers={"browse": "closed"},
            agents={"browse": {"idle": 4}},
            **browse,
        ),
        29,
    )
    peers.take(told("b", "draining"), 29)
    peers.take(told("c", "lost", by="a"), 29)
    seen = overview(peers, 31)
    assert [(line.worker_id, line.state, line.heard_s_ago) for line in seen.workers] == [
        ("a", "up", 1),
        ("b", "draining", 2),
        ("gone", "silent", 31),
    ]
    assert (seen.counted, seen.running, seen.prefetch) == (2, 6, 400)
    assert seen.rates == {"succeeded": 1, "retried": 0, "dead": 0}
    assert seen.agent_types["browse"].model_dump() == {
        "workers": 2,
        "is_paused": False,
        "waiting": 40,  # as it was seen last
        "running": 5,
        "breakers": {"open": 1, "closed": 1},
        "agents": {"busy": 2, "idle": 5},
        "rates": {"succeeded": 1, "retried": 0, "dead": 0},
    }
    assert seen.agent_types["sum"].model_dump() == {
        "workers": 1,
        "is_paused": False,
        "waiting": None,
        "running": 1,
        "breakers": {"closed": 1},
        "agents": {},
        "rates": {"succeeded": 0, "retried": 0, "dead": 0},
    }


def test_without_a_second_heartbeat_there_are_no_rates() -> None:
    assert overview(peers_of(told("a", totals={"succeeded": 5})), 1).rates is None
    assert overview(Peers(INTERVAL), 0).workers == []
