"""The route of a task's live events: server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from fastapi import APIRouter
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from warren.gateway.live.broadcast import Heard
from warren.gateway.live.listeners import Listener
from warren.gateway.live.server_sent import SEPARATOR, outcome, status
from warren.gateway.middleware.authentication import TheCaller
from warren.gateway.middleware.problems import problems
from warren.gateway.middleware.rules import API
from warren.gateway.models import TheBackend
from warren.gateway.routes.tasks import find
from warren.store.task_records import TaskRecord

router = APIRouter(prefix=API, tags=["tasks"])

HEARTBEAT: Final = 15  # seconds between two comments that keep proxies from closing a silent stream
SEND: Final = 60.0  # seconds that a reader may take for what was sent, before it is cut off

_EVENT: Final = {
    "type": "object",
    "description": "Each event of the stream.",
    "properties": {
        "event": {"enum": ["status", "progress", "retrying", "released", "promoted", "outcome"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "format": "uuid", "description": "Of what was heard from a worker."},
    },
    "required": ["event", "data"],
}
_STREAM: Final = {
    "description": "`status` first, then `progress`, `retrying`, `released`, `promoted` as they happen, and "
    "at the end `outcome` (a result, as workers answer it). A reader that is slow misses the oldest of what "
    "happened, never the outcome.",
    "content": {
        "text/event-stream": {
            "schema": _EVENT,
            "example": {"event": "progress", "data": '{"fraction":0.5,"text":"half"}'},
        }
    },
}


@router.get(
    "/tasks/{task_id}/events",
    summary="Follow a task",
    response_class=EventSourceResponse,
    responses={**problems(404), 200: _STREAM},
)
async def follow(task_id: UUID, backend: TheBackend, caller: TheCaller) -> EventSourceResponse:
    """A stream that ends with the task's outcome. Opened again, it begins with how things stand.

    It ends without one when the key is revoked or expires, or the browser's session ends.
    """
    record = await find(backend, caller, task_id)
    return _Stream(backend.heard, Listener(task_id, caller), record)


class _Stream(EventSourceResponse):
    """Listens while it is sent, and not a moment longer, however that ends."""

    def __init__(self, heard: Heard, listener: Listener, record: TaskRecord) -> None:
        super().__init__(_told(listener, record), ping=HEARTBEAT, send_timeout=SEND, sep=SEPARATOR)
        self._place = heard.listened(listener)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self._place:
            await super().__call__(scope, receive, send)


async def _told(listener: Listener, record: TaskRecord) -> AsyncIterator[bytes]:
    """The encoded events. It never asks the store: a stream that has begun cannot report its absence."""
    yield status(record)
    async for events in listener.heard():
        yield events
    if listener.ended is not None:
        yield outcome(listener.ended)
