"""Bodies of dead tasks as they are published again."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue

from warren.client.replay_edit import edited, fresh, merged
from warren.errors import InvalidTask

PAST, FUTURE = "2020-01-01T00:00:00Z", "2120-01-01T00:00:00Z"
LIMIT = 1000


def body(**fields: Any) -> bytes:
    task = {"version": 1, "task_id": str(uuid4()), "agent_type": "greet", "payload": {"a": 1}}
    return json.dumps(task | fields, indent=2).encode()


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging(target: JsonValue, patch: JsonValue, result: JsonValue) -> None:
    assert merged(target, patch) == result


def test_a_body_stays_byte_for_byte() -> None:
    for raw in (body(), body(expires_at=FUTURE, unknown=[1])):
        assert fresh(raw) == (raw, 4, None)


def test_a_time_that_has_passed_is_taken_off_and_nothing_else() -> None:
    raw = body(expires_at=PAST, unknown=[1], priority="urgent")
    again = fresh(raw)
    assert json.loads(again.body) == {k: v for k, v in json.loads(raw).items() if k != "expires_at"}
    assert again.priority == 8


def test_an_edited_task_is_a_new_one() -> None:
    raw, new_id = body(expires_at=PAST, unknown=[1], idempotency_key="k", user_id="acme"), uuid4()
    old, again = json.loads(raw), edited(raw, {"a": 2, "b": 3}, new_id, LIMIT)
    assert json.loads(again.body) == {
        "version": 1,
        "task_id": str(new_id),
        "replay_of": old["task_id"],
        "agent_type": "greet",
        "payload": {"a": 2, "b": 3},
        "unknown": [1],
        "user_id": "acme",
    }
    assert again.new_id == new_id


def test_what_cannot_be_replayed() -> None:
    with pytest.raises(InvalidTask, match="not a task"):
        fresh(b"junk")
    with pytest.raises(InvalidTask, match="not a task"):
        edited(b"{}", {}, uuid4(), LIMIT)
    with pytest.raises(InvalidTask, match="max_payload_bytes is 1000"):
        edited(body(), {"a": "x" * LIMIT}, uuid4(), LIMIT)
