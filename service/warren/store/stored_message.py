"""What the store keeps of a message, so that its task can be published again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parcel:
    """What it takes to publish a task: its body, JSON of its headers, and its AMQP properties."""

    body: bytes
    headers: bytes
    priority: int | None
    reply_to: str | None = None
    correlation_id: str | None = None

    def columns(self) -> dict[str, Any]:
        """The same by the names of the columns of `tasks`."""
        return {name: getattr(self, name) for name in Parcel.__slots__}


@dataclass(frozen=True, slots=True)
class Setback:
    """The failure after which a task is to be tried again, as it is written."""

    error_type: str
    error_message: str
    traceback: str | None
    fingerprint: str | None
    first_failed_at: float
    last_failed_at: float
