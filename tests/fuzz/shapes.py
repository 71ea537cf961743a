"""What an input is made of: what is extreme about it, and what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from tests.fuzz.amqp import Publish
from tests.fuzz.rows import Row
from warren.bus.topology import Names

VICTIMS: Final = ("echo", "fail", "refuse", "later", "remember", "blocking", "strict")
API: Final = "/api/v1"


@dataclass(frozen=True)
class Request:
    """A request to the gateway, by an admin."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)


Deed: TypeAlias = Publish | Request | Row


@dataclass(frozen=True)
class Change:
    """One place at one extreme."""

    kind: str
    place: str
    told: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind}: {self.place} = {self.told}"


@dataclass(frozen=True)
class Input:
    """What is done, in this order, and what is extreme about it."""

    number: int
    changes: tuple[Change, ...]
    course: str
    deeds: tuple[Deed, ...]

    def __str__(self) -> str:
        return f"#{self.number} {'; '.join(str(change) for change in self.changes)} ({self.course})"


@dataclass(frozen=True)
class World:
    """Where inputs go."""

    namespace: str
    replies: str
    is_sqlite: bool

    @property
    def names(self) -> Names:
        """The names of its queues and exchanges."""
        return Names(self.namespace)
