"""The parts of a message that the store keeps, so that its task can be published again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parcel:
    """The content needed to publish a task: its body, its headers as JSON, and its AMQP properties."""

    body: bytes
    headers: bytes
    priority: int | None
    reply_to: str | None = None
    correlation_id: str | None = None

    def columns(self) -> dict[str, Any]:
        """The content as values for the columns of `tasks`."""
        return {name: getattr(self, name) for name in Parcel.__slots__}


@dataclass(frozen=True, slots=True)
class Setback:
    """A failure after which a task is retried, as it is written. Times are seconds since the epoch."""

    error_type: str
    error_message: str
    traceback: str | None
    fingerprint: str | None
    first_failed_at: float
    last_failed_at: float
