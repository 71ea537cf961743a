"""Whether a second request with an idempotency key asks for what the first one asked for.

The body that the store keeps is compared, so no fingerprint is needed. Only a discarded task has none left:
of that one the agent type alone is compared.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json

LARGE: Final = 32 * 1024  # bytes of a body that takes long enough to compare to do it in a thread


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """The task that has an idempotency key. `body` is None once it was discarded."""

    task_id: UUID
    agent_type: str
    body: bytes | None

    async def is_the_same(self, agent_type: str, body: bytes) -> bool:
        """Whether a task of this type and body asks for the same: its other fields may differ.

        Payloads are the same if their JSON is, whatever the order of names in objects and the white space.
        """
        if agent_type != self.agent_type:
            return False
        if self.body is None or self.body == body:
            return True
        if max(len(self.body), len(body)) < LARGE:
            return _payload_of(self.body) == _payload_of(body)
        return await asyncio.to_thread(lambda first: _payload_of(first) == _payload_of(body), self.body)


def _payload_of(body: bytes) -> str:
    """The payload in one form of JSON. Values of Python would not do: there `True == 1`."""
    task: dict[str, Any] = from_json(body)
    return json.dumps(task["payload"], sort_keys=True)
