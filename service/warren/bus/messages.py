"""From bytes to tasks and from tasks to messages: the wire contract, without any I/O."""

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

# Where a probe that failed has to wait, whatever its own class: it must not be the next probe too.
LAST_IN_LINE = AMQP_PRIORITY["low"]
# Where a promoted task goes: between two classes, because whatever waits in the class above it and was not
# promoted as well came later. 9 is above urgent, and the end of it.
PROMOTED_FROM = {2: 5, 3: 5, 4: 7, 5: 7, 6: 9, 7: 9, 8: 9}
HIGHEST = 9
# Attempts and dispatches that a header may claim: a life of counting on still fits into 32 bits.
COUNTS_MAKE_SENSE = 2**30

_FAILURE_RECORD = frozenset(str(field.alias) for field in DeadLetterHeaders.model_fields.values())
# RabbitMQ delivers a copy to each routing key in `CC` and `BCC` (sender-selected distribution): carried
# along, a task would become more tasks each time that it is published again.
_NOT_CARRIED_ALONG = _FAILURE_RECORD | {REPUBLISHED, "CC", "BCC"}
# How a header of bytes, which JSON has not, stands in the store.
_BYTES = "$bytes"
_OWN_HEADERS = _FAILURE_RECORD | {ATTEMPTS, DISPATCH, REPLAY, REPUBLISHED}
TRACEPARENT_LENGTH = 255  # characters; today's have 55, and a later version of the standard may have more
_HAVE_COLUMNS = frozenset({ATTEMPTS, DISPATCH, REPLAY})


@dataclass(frozen=True, slots=True)
class Key:
    """What all copies of one life of a task have in common. A replay starts a new life.

    A message with the id of another's task is no copy of that.
    """

    task_id: UUID
    replay: str
    agent_type: str = ""
    user_id: str = ""


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562), for a task or an event: ordered by the time it was made."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def decode(delivery: Delivery, settings: Settings, *, agent_type: str | None = None) -> Task:
    """The task in a delivery, which must be for `agent_type` where that is known.

    Raises InvalidTask, saying what is wrong with the body.
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
    """The key under which copies of this task recognise each other."""
    return Key(task.task_id, str(headers.get(REPLAY, "")), task.agent_type, task.user_id)


def attempts_of(headers: Mapping[str, Any]) -> int:
    """Attempts already made, from `warren-attempts`; whatever makes no sense there counts as none."""
    return _count(headers.get(ATTEMPTS))


def dispatch_of(headers: Mapping[str, Any]) -> int:
    """Which publication by the store this is, from `warren-dispatch`; 0 for one that came straight here."""
    return _count(headers.get(DISPATCH))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value < COUNTS_MAKE_SENSE else 0


def carried_along(headers: Mapping[str, Any]) -> Headers:
    """The headers for a fresh publish of the same task.

    Without what the broker wrote (an `x-death` misroutes the message, and brokers before 4.0.1 drop it as a
    cycle), without a failure record, without the mark of an earlier second copy, and without further
    recipients.
    """
    return sendable(
        {
            name: value
            for name, value in headers.items()
            if not name.startswith("x-") and name not in _NOT_CARRIED_ALONG
        }
    )


def promoted(priority: int | None, task: Task) -> int:
    """The AMQP priority of a task that has waited one step with this one: above those that came later."""
    present = AMQP_PRIORITY[task.priority] if priority is None else priority
    return PROMOTED_FROM.get(present, PROMOTED_FROM[AMQP_PRIORITY["low"]] if present < HIGHEST else present)


def expiration_of(task: Task, settings: Settings, priority: int) -> float | None:
    """Seconds until the broker hands the task to ageing: one step, or less if it expires before that.

    A task that cannot rise any more keeps its place until it expires; None when it never does.
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
    """A task on its way to its queue. `body` keeps the bytes of a task that came from elsewhere."""
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
    """The same task as a fresh publish, with the attempts that it has used up.

    It is marked to be looked up: it may have remembered steps, and no broker says any more that it was
    delivered before.
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
    """What it takes to publish a delivery again, later, from the store."""
    properties = delivery.properties
    return Parcel(
        body=delivery.body,
        headers=kept_headers(delivery.headers),
        priority=properties.priority or AMQP_PRIORITY[task.priority],
        reply_to=properties.reply_to,
        correlation_id=properties.correlation_id,
    )


def kept_headers(headers: Mapping[str, Any]) -> bytes:
    """Headers as JSON for the store, without those that it has columns for."""
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
            except ValueError:  # a producer's own table with such a key
                return value
        case dict():
            return {name: _with_bytes_back(inner) for name, inner in value.items()}
        case list():
            return [_with_bytes_back(inner) for inner in value]
    return value


def due_message(due: Due, names: Names, settings: Settings) -> Message:
    """A task from the store on its way to its queue.

    Raises pydantic.ValidationError when the body in the store is no task (any more).
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
    """A dead letter: the body unchanged, the whole failure record in the headers."""
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
    """The message without what a producer added to its headers, which do not fit into a frame."""
    own = {
        name: value
        for name, value in message.headers.items()
        if name in _OWN_HEADERS or (name == TRACEPARENT and len(str(value)) <= TRACEPARENT_LENGTH)
    }
    return replace(message, headers=own)
