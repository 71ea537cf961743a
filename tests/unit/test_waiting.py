"""Why tasks have not ended: what whoever waits for them is told."""

from __future__ import annotations

from typing import Any

import pytest

from warren.cli.waiting import why
from warren.fleet.overview import AgentTypeLine


def line(**changes: Any) -> AgentTypeLine:
    usual: dict[str, Any] = {"workers": 2, "waiting": 3, "running": 0, "breakers": {"closed": 2}}
    return AgentTypeLine(**{**usual, "agents": {}, "rates": None, **changes})


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "no worker that has 'echo' was heard: start one with `warren worker MODULE:APP`"),
        (line(is_paused=True, breakers={"open": 2}), "'echo' is paused: `warren resume echo`"),
        (line(breakers={"open": 1, "half_open": 1}), "the breaker of 'echo' is open"),
        (line(waiting=2000), "the queue of 'echo' is full"),
        (line(breakers={"open": 1, "closed": 1}), "tasks of 'echo' run, or wait for their turn"),
        (line(waiting=None, breakers={}), "tasks of 'echo' run, or wait for their turn"),
    ],
)
def test_the_reason_is_told_where_it_is_known(found: AgentTypeLine | None, says: str) -> None:
    assert why("echo", found, 2000).startswith(says)
