"""From bytes to tasks and back: what is carried along, what is not, and how large it may get."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.header import ContentHeader

from tests.rig import task_body
from warren import Settings
from warren.bus.delivery import Delivery
from warren.bus.messages import (
    LAST_IN_LINE,
    again,
    attempts_of,
    carried_along,
    dead_message,
    decode,
    expiration_of,
    key_of,
    new_id,
    promoted,
    task_message,
)
from warren.bus.replies import dead_body, result_body, result_message
from warren.bus.topology import Names
from warren.errors import InvalidTask
from warren.support.failure import Failure
from warren.worker.outcome import Dead
from warren.worker.records import failure_record
from warren_schemas import (
    AMQP_PRIORITY,
    ATTEMPTS,
    REPLAY,
    REPUBLISHED,
    DeadLetterHeaders,
    Priority,
    Result,
    Task,
)

SETTINGS, NAMES = Settings(), Names("warren")
FRAME_MAX = 128 * 1024  # RabbitMQ's default; headers never get more than one frame
NOW = datetime.now(UTC)


def a_task(**fields: Any) -> Task:
    return Task.model_validate(task_body("browse", {"url": "u"}, **fields))


def delivery(body: bytes = b"{}", **properties: Any) -> Delivery:
    basic = spec.Basic.Properties(**properties)
    headers = dict(properties.get("headers") or {})
    return cast(
        "Delivery",
        SimpleNamespace(body=body, properties=basic, headers=headers),
    )


def a_death(failure: Failure) -> Dead:
    return Dead("exhausted", failure, 4, NOW, NOW + timedelta(seconds=1))


def record_of(failure: Failure) -> DeadLetterHeaders:
    return failure_record(a_death(failure), "w")


class TestDecode:
    def test_unknown_fields_are_ignored(self) -> None:
        body = task_body("browse", later="field")
        assert decode(delivery(json.dumps(body).encode()), SETTINGS).task_id == UUID(body["task_id"])

    def test_what_is_wrong_is_said(self) -> None:
        with pytest.raises(InvalidTask, match=r"not a task: .*payload.*required"):
            decode(delivery(b'{"version": 1}'), SETTINGS)

    def test_a_body_over_the_limit_is_not_even_read(self) -> None:
        with pytest.raises(InvalidTask, match="the body has 11 bytes; max_payload_bytes is 10"):
            decode(delivery(b"x" * 11), Settings(max_payload_bytes=10))


class TestHeaders:
    def test_what_the_broker_and_a_failure_wrote_stays_behind(self) -> None:
        record = DeadLetterHeaders(reason="exhausted", attempts=4, error_type="E").to_headers()
        headers = {"traceparent": "00-…", "tenant": 7, REPLAY: "r1", "x-death": [], "x-delivery-count": 2}
        assert carried_along(headers | record | {REPUBLISHED: True}) == {
            "traceparent": "00-…",
            "tenant": 7,
            REPLAY: "r1",
        }

    @pytest.mark.parametrize(
        ("value", "expected"), [(0, 0), (3, 3), (-1, 0), ("3", 0), (None, 0), (2.5, 0), ([1], 0), (2**63, 0)]
    )
    def test_attempts_that_make_no_sense_count_as_none(self, value: Any, expected: int) -> None:
        assert attempts_of({ATTEMPTS: value}) == expected

    def test_attempts_that_are_missing_count_as_none(self) -> None:
        assert attempts_of({}) == 0

    def test_a_replay_is_another_life_of_the_same_task(self) -> None:
        task = a_task()
        assert key_of(task, {}) == key_of(task, {"other": 1})
        assert key_of(task, {}) != key_of(task, {REPLAY: "r1"}) != key_of(task, {REPLAY: "r2"})


class TestExpiration:
    def test_one_step_without_an_end(self) -> None:
        assert expiration_of(a_task(), SETTINGS, 4) == SETTINGS.ageing_step

    @given(seconds=st.floats(-1000, 1000))
    def test_never_later_than_the_end(self, seconds: float) -> None:
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        expiration = expiration_of(a_task(expires_at=until.isoformat()), SETTINGS, 4)
        assert expiration is not None
        assert 0 <= expiration <= max(0, min(seconds, SETTINGS.ageing_step))

    def test_what_cannot_rise_keeps_its_place(self) -> None:
        assert expiration_of(a_task(), SETTINGS, 9) is None
        until = datetime.now(UTC) + timedelta(hours=1)
        left = expiration_of(a_task(expires_at=until.isoformat()), SETTINGS, 9)
        assert left is not None
        assert SETTINGS.ageing_step < left <= 3600


class TestPromotion:
    @given(priority=st.none() | st.integers(0, 255))
    def test_it_only_rises_and_ends_at_the_top(self, priority: int | None) -> None:
        start = 4 if priority is None else priority
        first = promoted(priority, a_task())
        assert first > start or first == start >= 9
        assert promoted(promoted(first, a_task()), a_task()) >= 9

    @pytest.mark.parametrize(("name", "steps"), [("low", [5, 7, 9]), ("medium", [7, 9]), ("urgent", [9])])
    def test_each_step_is_above_a_whole_class(self, name: Priority, steps: list[int]) -> None:
        priority, seen = AMQP_PRIORITY[name], list[int]()
        while (after := promoted(priority, a_task())) != priority:
            priority = after
            seen.append(after)
        assert seen == steps


class TestTaskMessage:
    @pytest.mark.parametrize(("priority", "number"), [("low", 2), ("medium", 4), ("high", 6), ("urgent", 8)])
    def test_it_is_what_the_contract_says(self, priority: Priority, number: int) -> None:
        task = a_task(priority=priority)
        message = task_message(task, NAMES, SETTINGS, reply_to="mine", correlation_id="42")
        assert (message.exchange, message.routing_key) == ("warren.tasks", "browse")
        assert (message.message_id, message.priority) == (str(task.task_id), number)
        assert (message.reply_to, message.correlation_id) == ("mine", "42")
        assert (message.mandatory, message.expiration) == (True, 30)
        assert Task.model_validate_json(message.body) == task

    def test_again_keeps_the_body_and_counts_the_attempts(self) -> None:
        task = a_task()
        came = delivery(
            b'{ "as it": "was" }',
            priority=8,
            reply_to="mine",
            correlation_id="42",
            headers={"tenant": 7, "x-death": [], ATTEMPTS: 1},
        )
        message = again(task, came, NAMES, SETTINGS, attempts=2)
        assert (message.body, message.priority) == (came.body, 8)
        assert message.headers == {"tenant": 7, ATTEMPTS: 2, REPUBLISHED: True}
        assert (message.reply_to, message.correlation_id) == ("mine", "42")
        assert again(task, came, NAMES, SETTINGS, attempts=2, priority=LAST_IN_LINE).priority == 2

    def test_what_is_published_again_may_have_been_run(self) -> None:
        assert again(a_task(), delivery(), NAMES, SETTINGS, attempts=0).headers[REPUBLISHED] is True


class TestDeadMessage:
    def test_it_is_what_the_contract_says(self) -> None:
        came = delivery(b"as it was", message_id="m", content_type="text/x", headers={"tenant": 7})
        death = a_death(Failure("ValueError", "no", "Traceback …", "f" * 16))
        message = dead_message(came, failure_record(death, "worker-1"), "browse", NAMES)
        assert (message.exchange, message.routing_key) == ("warren.dlx", "browse")
        assert (message.body, message.message_id, message.content_type) == (b"as it was", "m", "text/x")
        assert message.headers.pop("tenant") == 7
        assert DeadLetterHeaders.from_headers(message.headers) == DeadLetterHeaders(
            reason="exhausted",
            error_type="ValueError",
            error_message="no",
            traceback="Traceback …",
            attempts=4,
            first_failed_at=death.first_failed_at,
            last_failed_at=death.last_failed_at,
            worker="worker-1",
            fingerprint="f" * 16,
        )

    def test_a_body_without_an_id_gets_one(self) -> None:
        message = dead_message(delivery(), record_of(Failure.told("E", "")), "browse", NAMES)
        assert UUID(message.message_id).version == 7

    def test_the_largest_failure_fits_a_frame_many_times(self) -> None:
        try:
            raise ValueError("😀" * 100_000)
        except ValueError as error:
            failure = Failure.of(error)
        message = dead_message(delivery(), record_of(failure), "browse", NAMES)
        properties = spec.Basic.Properties(headers=message.headers, message_id=message.message_id)
        assert len(frame.marshal(ContentHeader(0, 0, properties), 1)) < FRAME_MAX / 8


class TestResults:
    @given(
        result=st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
            max_leaves=6,
        ),
        attempts=st.integers(1, 9),
    )
    def test_the_short_cut_equals_the_model_s_json(self, result: Any, attempts: int) -> None:
        task = a_task()
        model = Result(
            version=1, task_id=task.task_id, status="succeeded", result=result, error=None, attempts=attempts
        )
        body = result_body(task, json.dumps(result).encode(), attempts)
        assert json.loads(body) == json.loads(model.model_dump_json())

    def test_a_death_says_why(self) -> None:
        task = a_task()
        told = Failure.told("E", "no")
        result = Result.model_validate_json(dead_body(task.task_id, "exhausted", told, 4))
        assert (result.task_id, result.status, result.attempts) == (task.task_id, "dead", 4)
        assert result.error is not None
        assert (result.error.type, result.error.message, result.error.reason) == ("E", "no", "exhausted")

    @pytest.mark.parametrize("correlation_id", ["42", None])
    def test_it_goes_straight_to_the_reply_queue(self, correlation_id: str | None) -> None:
        task = a_task()
        message = result_message(b"{}", task.task_id, "mine", correlation_id)
        assert (message.exchange, message.routing_key) == ("", "mine")
        assert message.correlation_id == (correlation_id or str(task.task_id))


def test_ids_are_uuid7_and_ordered_by_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert {one.version for one in ids} == {7}
    assert ids == sorted(ids)


def test_no_header_multiplies_a_task() -> None:
    headers = {"CC": ["other"], "BCC": ["other"], "tenant": "ada"}
    assert carried_along(headers) == {"tenant": "ada"}
