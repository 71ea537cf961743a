"""Exchanges and queues: their names and arguments are the wire contract."""

from __future__ import annotations

import pytest

from warren import Settings
from warren.bus.topology import WEAKER, Binding, Exchange, Names, Profile, Queue, profile_for, topology

SETTINGS = Settings()


def queue(name: str, profile: Profile) -> Queue:
    [found] = [queue for queue in topology(["browse"], profile, SETTINGS).queues if queue.name == name]
    return found


@pytest.mark.parametrize("profile", ["quorum", "classic"])
def test_the_names_are_those_of_the_contract(profile: Profile) -> None:
    declared = topology(["browse", "summarise"], profile, SETTINGS)
    assert declared.exchanges == (
        Exchange("warren.tasks", "direct"),
        Exchange("warren.dlx", "headers"),
        Exchange("warren.events", "topic"),
        Exchange("warren.control", "fanout"),
    )
    assert [queue.name for queue in declared.queues] == [
        "warren.dead",
        "warren.ageing",
        "warren.tasks.browse",
        "warren.tasks.summarise",
    ]
    assert Binding("warren.tasks", "warren.tasks.browse", "browse") in declared.bindings
    assert not any(queue.exclusive for queue in declared.queues)


@pytest.mark.parametrize("profile", ["quorum", "classic"])
def test_the_dead_letter_exchange_splits_by_reason(profile: Profile) -> None:
    bindings = [one for one in topology([], profile, SETTINGS).bindings if one.exchange == "warren.dlx"]
    by_broker = {
        one.arguments["x-first-death-reason"]: one.queue
        for one in bindings
        if one.arguments["x-match"] == "any-with-x"
    }
    assert by_broker == {
        "expired": "warren.ageing",
        "rejected": "warren.dead",
        "delivery_limit": "warren.dead",
        "maxlen": "warren.dead",
    }
    [by_worker] = [one for one in bindings if one.arguments["x-match"] != "any-with-x"]
    assert (by_worker.queue, by_worker.arguments) == (
        "warren.dead",
        {"x-match": "any", "warren-reason": None},
    )


def test_a_quorum_task_queue() -> None:
    assert queue("warren.tasks.browse", "quorum").arguments == {
        "x-queue-type": "quorum",
        "x-max-length": 2000,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "warren.dlx",
        "x-dead-letter-strategy": "at-least-once",
        "x-delivery-limit": 20,
        "x-consumer-timeout": 43_200_000,
    }


def test_a_classic_task_queue() -> None:
    assert queue("warren.tasks.browse", "classic").arguments == {
        "x-queue-type": "classic",
        "x-max-length": 2000,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "warren.dlx",
        "x-max-priority": 9,
    }


@pytest.mark.parametrize("name", ["warren.dead", "warren.ageing"])
def test_the_queues_that_keep_give_nothing_away(name: str) -> None:
    assert queue(name, "quorum").arguments == {"x-queue-type": "quorum", "x-delivery-limit": -1}
    assert queue(name, "classic").arguments == {"x-queue-type": "classic"}


def test_what_is_weaker_is_told() -> None:
    assert WEAKER["quorum"] == ()
    assert WEAKER["classic"]


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("4.3.6", "quorum"),
        ("4.3.0-rc.1", "quorum"),
        ("4.10.0", "quorum"),
        ("5.0", "quorum"),
        ("4.2.1", "classic"),
        ("3.10.8", "classic"),
        ("3.13.7+2", "classic"),
    ],
)
def test_the_version_decides_on_the_profile(version: str, profile: str) -> None:
    assert profile_for(version, SETTINGS) == profile


@pytest.mark.parametrize("insisted", ["quorum", "classic"])
def test_unless_the_settings_insist(insisted: Profile) -> None:
    settings = Settings(queue_profile=insisted)
    assert {profile_for("4.3.6", settings), profile_for("3.10.8", settings)} == {insisted}


def test_an_agent_type_and_its_queue_are_told_from_each_other() -> None:
    names = Names("shop")
    assert names.queue("tasks") == "shop.tasks.tasks"
    assert names.agent_type("shop.tasks.tasks") == "tasks"
