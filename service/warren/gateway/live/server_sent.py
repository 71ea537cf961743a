"""Encoding of server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from typing import Final

from pydantic_core import to_json
from sse_starlette import ServerSentEvent

from warren.store.task_records import TaskRecord
from warren_schemas import Event

SEPARATOR: Final = "\n"  # between lines


def status(record: TaskRecord) -> bytes:
    """The task's status, the first event of a stream."""
    return _event("status", {"task_id": str(record.task_id), "status": record.status})


def happened(event: Event) -> bytes:
    """An event of a worker about the task."""
    told = {name: value for name, value in event.details.items() if name != "task_id"}
    return _event(event.state, {**told, "at": event.at, "reason": event.reason}, str(event.event_id))


def outcome(record: TaskRecord) -> bytes:
    """The task's outcome, in the form of a worker's answer."""
    return _event("outcome", record.as_result().model_dump(mode="json"))


def _event(name: str, data: object, event_id: str | None = None) -> bytes:
    return ServerSentEvent(data=to_json(data).decode(), event=name, id=event_id, sep=SEPARATOR).encode()
