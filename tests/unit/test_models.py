"""The messages: what they take, what they refuse, and what they look like when written."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from warren_schemas import (
    AGENT_TYPE_PATTERN,
    AMQP_PRIORITY,
    STATES,
    Event,
    Kind,
    Priority,
    Result,
    ResultError,
    State,
    Task,
)

TASK: dict[str, Any] = {
    "version": 1,
    "task_id": "01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
    "agent_type": "summarise",
    "payload": {"url": "https://example.com"},
}


def read_task(**changes: Any) -> Task:
    return Task.model_validate_json(json.dumps(TASK | changes))


def event(**changes: Any) -> Event:
    fields = {
        "version": 1,
        "event_id": uuid4(),
        "at": datetime.now(UTC),
        "kind": "breaker",
        "subject": "browse",
        "state": "open",
    }
    return Event.model_validate(fields | changes)


# Surrogates stand for no character; nothing that is JSON in UTF-8 has them.
text = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
json_values: st.SearchStrategy[JsonValue] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
times = st.none() | st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001 -- hypothesis wants bounds without an offset
    max_value=datetime(2900, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
tasks = st.builds(
    Task,
    version=st.just(1),
    task_id=st.uuids(),
    agent_type=st.from_regex(AGENT_TYPE_PATTERN, fullmatch=True),
    payload=json_values,
    user_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=255),
    priority=st.sampled_from(get_args(Priority)),
    created_at=times,
    expires_at=times,
    not_before=times,
    timeout_s=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    idempotency_key=st.none() | text,
    replay_of=st.none() | st.uuids(),
    metadata=st.dictionaries(text, text, max_size=3),
)


class TestTask:
    @given(task=tasks)
    def test_comes_back_from_json_as_it_was(self, task: Task) -> None:
        assert Task.model_validate_json(task.model_dump_json()) == task

    def test_needs_four_fields_and_has_defaults_for_the_others(self) -> None:
        task = read_task()
        assert (task.task_id, task.user_id, task.priority) == (UUID(TASK["task_id"]), "default", "medium")
        assert (task.created_at, task.expires_at, task.not_before, task.timeout_s) == (None, None, None, None)
        assert task.metadata == {}

    @pytest.mark.parametrize("missing", ["version", "task_id", "agent_type", "payload"])
    def test_names_what_is_missing(self, missing: str) -> None:
        body = json.dumps({name: value for name, value in TASK.items() if name != missing})
        with pytest.raises(ValidationError, match=rf"{missing}\n  Field required"):
            Task.model_validate_json(body)

    def test_payload_may_be_null(self) -> None:
        assert read_task(payload=None).payload is None

    def test_ignores_what_a_newer_producer_added(self) -> None:
        assert read_task(colour="red") == read_task()

    def test_refuses_another_version_and_names_it(self) -> None:
        with pytest.raises(ValidationError, match=r"version\n  Input should be 1 .*input_value=2"):
            read_task(version=2)

    def test_is_frozen(self) -> None:
        task = read_task()
        with pytest.raises(ValidationError, match="frozen"):
            task.user_id = "somebody"  # type: ignore[misc]

    @pytest.mark.parametrize("agent_type", ["a", "summarise", "web-search_2", "a" * 63])
    def test_takes_an_agent_type(self, agent_type: str) -> None:
        assert read_task(agent_type=agent_type).agent_type == agent_type

    @pytest.mark.parametrize("agent_type", ["", "A", "1a", "_a", "a.b", "a b", "a\n", "a*", "é", "a" * 64])
    def test_refuses_what_is_no_agent_type(self, agent_type: str) -> None:
        with pytest.raises(ValidationError, match="agent_type"):
            read_task(agent_type=agent_type)

    @pytest.mark.parametrize("field", ["created_at", "expires_at", "not_before"])
    def test_refuses_a_time_without_an_offset(self, field: str) -> None:
        with pytest.raises(ValidationError, match=rf"{field}\n  Input should have timezone info"):
            read_task(**{field: "2026-11-02T09:30:00"})

    def test_keeps_and_writes_times_in_utc(self) -> None:
        task = read_task(expires_at="2026-11-02T09:30:00+02:00")
        assert task.expires_at == datetime(2026, 11, 2, 7, 30, tzinfo=UTC)
        assert '"expires_at":"2026-11-02T07:30:00Z"' in task.model_dump_json()

    @pytest.mark.parametrize("time", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
    def test_refuses_a_time_that_utc_cannot_tell(self, time: str) -> None:
        with pytest.raises(ValidationError, match="before the year 1 or after the year 9999"):
            read_task(expires_at=time)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("task_id", "seven"),
            ("task_id", None),
            ("user_id", ""),
            ("user_id", "u" * 256),
            ("user_id", None),
            ("priority", "asap"),
            ("priority", 4),
            ("timeout_s", 0),
            ("timeout_s", -1),
            ("timeout_s", math.inf),
            ("timeout_s", math.nan),
            ("idempotency_key", "k" * 256),
            ("replay_of", "seven"),
            ("metadata", {"tries": 3}),
            ("metadata", []),
        ],
    )
    def test_names_the_field_that_is_wrong(self, field: str, value: object) -> None:
        with pytest.raises(ValidationError, match=f"1 validation error for Task\n{field}"):
            read_task(**{field: value})

    @pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"task"', b"\xff\xfe", b"\x80\x04K\x01."])
    def test_refuses_a_body_that_is_no_json_object(self, body: bytes) -> None:
        with pytest.raises(ValidationError):
            Task.model_validate_json(body)

    def test_every_priority_has_a_number_and_the_order_is_right(self) -> None:
        assert tuple(AMQP_PRIORITY) == get_args(Priority)
        assert list(AMQP_PRIORITY.values()) == [2, 4, 6, 8]

    def test_ten_thousand_read_alike(self) -> None:
        body = json.dumps(TASK | {"created_at": "2026-11-02T09:30:00Z"}).encode()
        first = Task.model_validate_json(body)
        assert all(Task.model_validate_json(body) == first for _ in range(10_000))


class TestEvent:
    @pytest.mark.parametrize("kind", STATES)
    def test_is_in_a_state_of_its_kind(self, kind: Kind) -> None:
        for state in get_args(State):
            if state in STATES[kind]:
                assert event(kind=kind, state=state).state == state
            else:
                with pytest.raises(ValidationError, match=f"a {kind} is never {state!r}, only one of"):
                    event(kind=kind, state=state)

    def test_every_kind_has_states_and_every_state_a_kind(self) -> None:
        assert set(STATES) == set(get_args(Kind))
        assert {state for states in STATES.values() for state in states} == set(get_args(State))

    @pytest.mark.parametrize(
        ("kind", "subject", "state", "routing_key"),
        [
            ("worker", "Node-1_7", "lost", "health.worker.Node-1_7.lost"),
            ("agent", "browse", "replaced", "health.agent.browse.replaced"),
            ("breaker", "browse", "half_open", "health.breaker.browse.half_open"),
            ("queue", "browse", "full", "health.queue.browse.full"),
            ("store", "postgresql", "down", "health.store.down"),
            ("task", "browse", "dead", "task.browse.dead"),
        ],
    )
    def test_has_a_routing_key(self, kind: str, subject: str, state: str, routing_key: str) -> None:
        assert event(kind=kind, subject=subject, state=state).routing_key == routing_key

    @given(subject=text, kind=st.sampled_from(get_args(Kind)), data=st.data())
    def test_no_subject_adds_a_dot_to_the_routing_key(
        self, subject: str, kind: Kind, data: st.DataObject
    ) -> None:
        state = data.draw(st.sampled_from(STATES[kind]))
        try:
            routing_key = event(kind=kind, subject=subject, state=state).routing_key
        except ValidationError:
            return
        assert routing_key.count(".") == (2 if kind in {"store", "task"} else 3)

    @pytest.mark.parametrize("subject", ["", "a.b", "node1.example.com", "*", "#", "a b", "a\n", "n" * 129])
    def test_refuses_a_subject_that_is_not_one_word(self, subject: str) -> None:
        with pytest.raises(ValidationError, match="subject"):
            event(kind="worker", state="started", subject=subject)

    @pytest.mark.parametrize("kind", ["agent", "breaker", "queue", "task"])
    def test_refuses_a_subject_that_is_no_agent_type(self, kind: Kind) -> None:
        with pytest.raises(ValidationError, match="'Browse' is no agent type"):
            event(kind=kind, state=STATES[kind][0], subject="Browse")

    def test_a_routing_key_fits_into_amqp(self) -> None:
        longest = event(kind="worker", state="heartbeat", subject="n" * 128).routing_key
        assert len(longest) <= 255


class TestResult:
    @given(value=json_values)
    def test_comes_back_from_json_as_it_was(self, value: JsonValue) -> None:
        result = Result(version=1, task_id=uuid4(), status="succeeded", result=value, attempts=1)
        assert Result.model_validate_json(result.model_dump_json()) == result

    def test_tells_why_a_task_is_dead(self) -> None:
        error = ResultError(type="ValueError", message="no such page", reason="exhausted")
        result = Result(version=1, task_id=uuid4(), status="dead", error=error, attempts=4)
        written = json.loads(result.model_dump_json())
        assert written["error"] == {"type": "ValueError", "message": "no such page", "reason": "exhausted"}
        assert written["result"] is None

    @pytest.mark.parametrize(
        ("field", "value"), [("status", "done"), ("attempts", -1), ("version", 2), ("error", {"type": "E"})]
    )
    def test_names_the_field_that_is_wrong(self, field: str, value: object) -> None:
        good = {"version": 1, "task_id": str(uuid4()), "status": "dead", "attempts": 1}
        with pytest.raises(ValidationError, match=f"\n{field}"):
            Result.model_validate(good | {field: value})

    @pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": {"b": -math.inf}}, object(), {1: 2}])
    def test_refuses_what_json_has_no_word_for(self, value: object) -> None:
        good = {"version": 1, "task_id": uuid4(), "status": "succeeded", "attempts": 1}
        with pytest.raises(ValidationError, match="\nresult"):
            Result.model_validate(good | {"result": value})
