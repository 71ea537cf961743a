"""Comparison of requests with the same idempotency key: do both ask for the same task?

The stored body is compared, so no fingerprint is needed. A discarded task has no body any more; then only the
agent type is compared.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json

LARGE: Final = 32 * 1024  # bytes: larger bodies are compared in a thread


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The task that has an idempotency key. `body` is None if the task was discarded."""

    task_id: UUID
    agent_type: str
    body: bytes | None

    async def is_the_same(self, agent_type: str, body: bytes) -> bool:
        """Whether a task with this type and body has the same type and payload. Other fields may differ.

        Payloads are compared as JSON. The order of names in objects and white space do not matter.
        """
        if agent_type != self.agent_type:
            return False
        if self.body is None or self.body == body:
            return True
        if max(len(self.body), len(body)) < LARGE:
            return _payload_of(self.body) == _payload_of(body)
        return await asyncio.to_thread(lambda first: _payload_of(first) == _payload_of(body), self.body)


def _payload_of(body: bytes) -> str:
    """The payload as canonical JSON. Python values cannot be compared, since `True == 1`."""
    task: dict[str, Any] = from_json(body)
    return json.dumps(task["payload"], sort_keys=True)
