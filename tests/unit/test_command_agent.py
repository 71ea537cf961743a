"""Programs as agents: what needs no program."""

from __future__ import annotations

from typing import Any

import pytest

from warren import CommandAgent, Reject
from warren.agents.command import json_of
from warren.errors import AgentError

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a_line": ({"command": "cat -n"}, "must be a list: the program, then its arguments one by one"),
    "empty": ({"command": []}, "must be a list"),
    "no_name": ({"command": [""]}, "must be a list"),
    "nul": ({"command": ["cat", "a\0b"]}, "holds a NUL character"),
    "variable": ({"env": {"A=B": "1"}}, "env: 'A=B' cannot be a variable"),
    "nul_value": ({"env": {"A": "\0"}}, "env: 'A' cannot be a variable"),
    "wait": ({"retry_after": -1}, "must be seconds of zero or more"),
    "grace": ({"kill_grace": float("nan")}, "must be seconds of zero or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_told(name: str) -> None:
    options, says = WRONG[name]
    with pytest.raises(AgentError) as wrong:
        CommandAgent(**{"command": ["cat"], **options})
    assert says in str(wrong.value)


def test_its_name_leaves_the_arguments_out() -> None:
    assert str(CommandAgent(["my agent", "--token", "secret"])) == "command 'my agent'"


def test_a_payload_is_one_line_of_utf_8() -> None:
    assert json_of({"text": "hé\n"}) == '{"text":"hé\\n"}'.encode()


@pytest.mark.parametrize("payload", [float("nan"), [float("inf")], {"a": "\ud800"}])
def test_what_json_cannot_say_is_rejected(payload: Any) -> None:
    with pytest.raises(Reject, match="cannot be passed on as JSON"):
        json_of(payload)
