"""Codec between AMQP messages and tasks. It implements the wire contract and does no I/O."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import uuid_utils
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from warren.bus.compat import sendable
from warren.bus.connection import Headers, Message
from warren.bus.delivery import Delivery
from warren.bus.topology import Names
from warren.errors import InvalidTask
from warren.settings import Settings
from warren.store.outbox import Due
from warren.store.stored_message import Parcel
from warren.support.failure import what_does_not_fit
from warren_schemas import (
    AMQP_PRIORITY,
    ATTEMPTS,
    DISPATCH,
    REPLAY,
    REPUBLISHED,
    TRACEPARENT,
    DeadLetterHeaders,
    Task,
)

# Priority of a task whose run was a failed circuit breaker probe. It ignores the task's own class, because
# the same task must not be the next probe.
LAST_IN_LINE = AMQP_PRIORITY["low"]
# New priority of a promoted task, by its old priority. It lies between two classes: a task in the class
# above that was not promoted as well arrived later. 9 is above urgent, and is the highest.
PROMOTED_FROM = {2: 5, 3: 5, 4: 7, 5: 7, 6: 9, 7: 9, 8: 9}
HIGHEST = 9
# Limit for the attempts and dispatches that a header may claim. Counting on from there stays within 32 bits.
COUNTS_MAKE_SENSE = 2**30

_FAILURE_RECORD = frozenset(str(field.alias) for field in DeadLetterHeaders.model_fields.values())
# RabbitMQ delivers a copy to each routing key in `CC` and `BCC` (sender-selected distribution). If these
# headers were kept, each new publish would multiply the task.
_NOT_CARRIED_ALONG = _FAILURE_RECORD | {REPUBLISHED, "CC", "BCC"}
# JSON has no bytes: the store keeps a bytes header as an object with this one name.
_BYTES = "$bytes"
_OWN_HEADERS = _FAILURE_RECORD | {ATTEMPTS, DISPATCH, REPLAY, REPUBLISHED}
TRACEPARENT_LENGTH = 255  # characters; version 00 has 55, and a later version of the standard may have more
_HAVE_COLUMNS = frozenset({ATTEMPTS, DISPATCH, REPLAY})


@dataclass(frozen=True, slots=True)
class Key:
    """Identity of one life of a task. All copies of that life share it; a replay starts a new life.

    Agent type and user belong to it: a message that reuses the id of another user's task is not a copy.
    """

    task_id: UUID
    replay: str
    agent_type: str = ""
    user_id: str = ""


def new_id() -> UUID:
    """A new UUIDv7 (RFC 9562) for a task or an event. These ids sort by creation time."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def decode(delivery: Delivery, settings: Settings, *, agent_type: str | None = None) -> Task:
    """Decode the task in a delivery. If `agent_type` is given, the task must be for it.

    Raises InvalidTask, which says what is wrong with the body.
    """
    if len(delivery.body) > settings.max_payload_bytes:
        raise InvalidTask(
            f"the body has {len(delivery.body)} bytes; max_payload_bytes is {settings.max_payload_bytes}"
        )
    try:
        task = Task.model_validate_json(delivery.body)
    except ValidationError as error:
        raise InvalidTask(f"the body is not a task: {what_does_not_fit(error)}") from error
    if agent_type is not None and task.agent_type != agent_type:
        raise InvalidTask(f"the task is for {task.agent_type!r}, but was sent to {agent_type!r}")
    return task


def key_of(task: Task, headers: Mapping[str, Any]) -> Key:
    """The identity that this task shares with its copies."""
    return Key(task.task_id, str(headers.get(REPLAY, "")), task.agent_type, task.user_id)


def attempts_of(headers: Mapping[str, Any]) -> int:
    """Attempts already made, from the header `warren-attempts`. An invalid value counts as 0."""
    return _count(headers.get(ATTEMPTS))


def dispatch_of(headers: Mapping[str, Any]) -> int:
    """Number of this publication by the store, from `warren-dispatch`; 0 if a producer published directly."""
    return _count(headers.get(DISPATCH))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value < COUNTS_MAKE_SENSE else 0


def carried_along(headers: Mapping[str, Any]) -> Headers:
    """The headers to keep when the same task is published again.

    It drops the broker's `x-` headers (an `x-death` misroutes the message, and brokers before 4.0.1 drop it
    as a cycle), the failure record, the mark of an earlier second copy, and the further recipients.
    """
    return sendable(
        {
            name: value
            for name, value in headers.items()
            if not name.startswith("x-") and name not in _NOT_CARRIED_ALONG
        }
    )


def promoted(priority: int | None, task: Task) -> int:
    """The new AMQP priority of a task that has waited one ageing step: above tasks that arrived later."""
    present = AMQP_PRIORITY[task.priority] if priority is None else priority
    return PROMOTED_FROM.get(present, PROMOTED_FROM[AMQP_PRIORITY["low"]] if present < HIGHEST else present)


def expiration_of(task: Task, settings: Settings, priority: int) -> float | None:
    """Seconds until the broker moves the task to ageing: one step, or less if the task expires sooner.

    A task with the highest priority waits until it expires. None if it has that priority and never expires.
    """
    step = settings.ageing_step if priority < HIGHEST else None
    if task.expires_at is None:
        return step
    left = max(0.0, (task.expires_at - datetime.now(UTC)).total_seconds())
    return left if step is None else min(step, left)


def task_message(
    task: Task,
    names: Names,
    settings: Settings,
    *,
    body: bytes | None = None,
    headers: Headers | None = None,
    priority: int | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
) -> Message:
    """The message that publishes a task. `body` is the original JSON of a task that was received."""
    priority = AMQP_PRIORITY[task.priority] if priority is None else priority
    return Message(
        exchange=names.tasks,
        routing_key=task.agent_type,
        body=body if body is not None else task.model_dump_json(exclude_defaults=True).encode(),
        message_id=str(task.task_id),
        headers=headers or {},
        priority=priority,
        expiration=expiration_of(task, settings, priority),
        reply_to=reply_to,
        correlation_id=correlation_id,
    )


def again(
    task: Task,
    delivery: Delivery,
    names: Names,
    settings: Settings,
    *,
    attempts: int,
    priority: int | None = None,
) -> Message:
    """The message that publishes a delivered task again, with the number of attempts that it has used.

    It is marked `warren-republished`, so that the next worker looks the task up in the store: steps may be
    recorded there, and the broker does not mark a new message as redelivered.
    """
    headers = carried_along(delivery.headers) | {ATTEMPTS: attempts, REPUBLISHED: True}
    return task_message(
        task,
        names,
        settings,
        body=delivery.body,
        headers=headers,
        priority=delivery.properties.priority if priority is None else priority,
        reply_to=delivery.properties.reply_to,
        correlation_id=delivery.properties.correlation_id,
    )


def parcel_of(delivery: Delivery, task: Task) -> Parcel:
    """The parts of a delivery that the store needs to publish it again later."""
    properties = delivery.properties
    return Parcel(
        body=delivery.body,
        headers=kept_headers(delivery.headers),
        priority=properties.priority or AMQP_PRIORITY[task.priority],
        reply_to=properties.reply_to,
        correlation_id=properties.correlation_id,
    )


def kept_headers(headers: Mapping[str, Any]) -> bytes:
    """The headers as JSON for the store, without the headers that have columns there."""
    kept = {name: value for name, value in carried_along(headers).items() if name not in _HAVE_COLUMNS}
    return to_json(_with_bytes_named(kept), fallback=str, inf_nan_mode="null")


def _with_bytes_named(value: Any) -> Any:
    match value:
        case bytes() | bytearray():
            return {_BYTES: b64encode(value).decode()}
        case dict():
            return {name: _with_bytes_named(inner) for name, inner in value.items()}
        case list():
            return [_with_bytes_named(inner) for inner in value]
    return value


def _with_bytes_back(value: Any) -> Any:
    match value:
        case {"$bytes": str(text)} if len(value) == 1:
            try:
                return bytearray(b64decode(text, validate=True))
            except ValueError:  # a producer's own table that has this key
                return value
        case dict():
            return {name: _with_bytes_back(inner) for name, inner in value.items()}
        case list():
            return [_with_bytes_back(inner) for inner in value]
    return value


def due_message(due: Due, names: Names, settings: Settings) -> Message:
    """The message that publishes a due task from the store.

    Raises pydantic.ValidationError if the body in the store is not a valid task for this version.
    """
    headers: Headers = sendable(_with_bytes_back(from_json(due.parcel.headers)))
    if due.attempts:
        headers[ATTEMPTS] = due.attempts
    if due.life:
        headers[REPLAY] = due.life
    return task_message(
        Task.model_validate_json(due.parcel.body),
        names,
        settings,
        body=due.parcel.body,
        headers=headers | {DISPATCH: due.dispatch},
        priority=due.parcel.priority,
        reply_to=due.parcel.reply_to,
        correlation_id=due.parcel.correlation_id,
    )


def dead_message(delivery: Delivery, record: DeadLetterHeaders, agent_type: str, names: Names) -> Message:
    """A dead letter: the body is unchanged, and the headers hold the whole failure record."""
    properties = delivery.properties
    return Message(
        exchange=names.dlx,
        routing_key=agent_type,
        body=delivery.body,
        message_id=properties.message_id or str(new_id()),
        headers=carried_along(delivery.headers) | record.to_headers(),
        priority=properties.priority,
        reply_to=properties.reply_to,
        correlation_id=properties.correlation_id,
        content_type=properties.content_type,
    )


def lightened(message: Message) -> Message:
    """The message without the producer's own headers, for headers that are too large for one frame."""
    own = {
        name: value
        for name, value in message.headers.items()
        if name in _OWN_HEADERS or (name == TRACEPARENT and len(str(value)) <= TRACEPARENT_LENGTH)
    }
    return replace(message, headers=own)
