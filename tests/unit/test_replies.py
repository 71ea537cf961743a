"""Which queues `reply_to` may name."""

from __future__ import annotations

import pytest

from warren import Settings
from warren.bus.replies import Replies

OURS = [
    "warren.tasks", "warren.tasks.browse", "warren.dead", "warren.ageing", "warren.dlx", "warren.events",
    "warren.peers.0a", "warren.control.0a", "warren.listener.0a", "warren.gateway.0a", "warren.replies",
    "warren.",
]  # fmt: skip
CLIENTS = ["warren.replies.client-0a", "amq.rabbitmq.reply-to.g1h2"]
OTHERS = ["billing.answers", "amq.gen-0a", "warrenty", "Warren.tasks.browse", "x" * 255]


@pytest.mark.parametrize("allowed", ["*", "", "warren.*", "billing.*"])
def test_never_our_own_queues_and_always_those_of_clients(allowed: str) -> None:
    replies = Replies(Settings(reply_to_allowed=allowed))
    assert not [queue for queue in OURS if replies.allow(queue)]
    assert replies.refusals.count == len(OURS)
    assert [queue for queue in CLIENTS if replies.allow(queue)] == CLIENTS


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("*", OTHERS),
        ("", []),
        ("billing.*, amq.gen-*", ["billing.answers", "amq.gen-0a"]),
        ("billing.answers", ["billing.answers"]),
    ],
)
def test_other_queues_as_the_setting_says(allowed: str, expected: list[str]) -> None:
    replies = Replies(Settings(reply_to_allowed=allowed))
    assert [queue for queue in OTHERS if replies.allow(queue)] == expected
    assert replies.refusals.count == len(OTHERS) - len(expected)


def test_another_namespace_is_not_ours() -> None:
    replies = Replies(Settings(namespace="orders"))
    assert replies.allow("warren.tasks.browse")
    assert not replies.allow("orders.tasks.browse")
