"""Bodies of replayed tasks: the old body without an `expires_at` that has passed, or an edited one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import JsonValue, ValidationError
from pydantic_core import from_json, to_json

from warren.errors import InvalidTask
from warren.store.replays import Fresh
from warren.support.failure import what_does_not_fit
from warren_schemas import AMQP_PRIORITY, Task


def fresh(body: bytes) -> Fresh:
    """The body without an `expires_at` that has passed: a replayed task is meant to run.

    Otherwise its bytes stay the same. Its priority is reset to that of its class, even if it had risen.
    Raises InvalidTask when it is no task.
    """
    task = _task(body)
    if task.expires_at is not None and task.expires_at <= datetime.now(UTC):
        body = to_json(_without_time(from_json(body)))
    return Fresh(body, AMQP_PRIORITY[task.priority])


def edited(body: bytes, patch: JsonValue, new_id: UUID, max_bytes: int) -> Fresh:
    """A new task: the old one with its payload patched. Unknown fields are kept.

    Its idempotency key stays with the old task. Raises InvalidTask when the outcome is no task or too large.
    """
    old = _task(body)
    fields = from_json(body)
    if old.expires_at is not None and old.expires_at <= datetime.now(UTC):
        fields = _without_time(fields)
    fields.pop("idempotency_key", None)
    fields |= {
        "task_id": str(new_id),
        "replay_of": str(old.task_id),
        "payload": merged(fields["payload"], patch),
    }
    raw = to_json(fields)
    if len(raw) > max_bytes:
        raise InvalidTask(f"edited, it has {len(raw)} bytes; max_payload_bytes is {max_bytes}")
    return Fresh(raw, AMQP_PRIORITY[_task(raw).priority], new_id)


def merged(target: JsonValue, patch: JsonValue) -> JsonValue:
    """A JSON merge patch applied (RFC 7396): null removes a member, anything but an object replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _without_time(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "expires_at"}


def _task(body: bytes) -> Task:
    try:
        return Task.model_validate_json(body)
    except ValidationError as error:
        raise InvalidTask(f"the body is not a task: {what_does_not_fit(error)}") from error
