"""Events: what happens to workers, agents, breakers, queues, the store and tasks."""

import re
from collections.abc import Mapping
from typing import Final, Literal, Self
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue, model_validator

from warren_schemas.values import AGENT_TYPE_PATTERN, Message, Name, UtcDatetime

Kind = Literal["worker", "agent", "breaker", "queue", "store", "task"]
"""What an event is about."""

State = Literal[
    "started", "heartbeat", "draining", "stopped", "lost",
    "unhealthy", "recovered", "replaced",
    "open", "half_open", "closed",
    "full", "available",
    "down", "up",
    "succeeded", "retrying", "dead", "released", "cancelled", "progress", "promoted",
]  # fmt: skip
"""Every state of every kind; `STATES` tells them apart."""

STATES: Final[Mapping[Kind, tuple[State, ...]]] = {
    "worker": ("started", "heartbeat", "draining", "stopped", "lost"),
    "agent": ("started", "unhealthy", "recovered", "replaced", "stopped"),
    "breaker": ("open", "half_open", "closed"),
    "queue": ("full", "available"),
    "store": ("down", "up"),
    "task": ("succeeded", "retrying", "dead", "released", "cancelled", "progress", "promoted"),
}
"""The states that each kind can be in."""

# The kinds whose subject is an agent type; the others name a worker or a store.
_OF_AN_AGENT_TYPE: Final[tuple[Kind, ...]] = ("agent", "breaker", "queue", "task")

_EXAMPLES: list[JsonValue] = [
    {
        "version": 1,
        "event_id": "01932c0a-7d3e-7c11-a9b4-0e6f2d8c5b90",
        "at": "2026-11-02T09:31:07.250Z",
        "kind": "breaker",
        "subject": "browse",
        "state": "open",
        "previous": "closed",
        "reason": "5 failures in a row, the last: ConnectTimeout",
        "worker_id": "node1-4711-c0ffee",
        "details": {"failures": 5, "reset_timeout_s": 60},
    },
    {
        "version": 1,
        "event_id": "01932c0a-91f0-7f3a-8d2c-6b7a1e4f0d25",
        "at": "2026-11-02T09:31:12Z",
        "kind": "worker",
        "subject": "node1-4711-c0ffee",
        "state": "heartbeat",
        "previous": None,
        "reason": None,
        "worker_id": "node1-4711-c0ffee",
        "details": {"running": 37, "agents": ["browse", "summarise"]},
    },
    {
        "version": 1,
        "event_id": "01932c0b-02aa-7e64-b1c7-94d5e8a3f612",
        "at": "2026-11-02T09:31:40.008Z",
        "kind": "task",
        "subject": "browse",
        "state": "dead",
        "previous": None,
        "reason": "exhausted",
        "worker_id": "node1-4711-c0ffee",
        "details": {"task_id": "01932c07-4d10-7a52-9c3e-b1f0a8d47e66", "attempts": 4},
    },
    {
        "version": 1,
        "event_id": "01932c0b-3c5d-7b08-9a6e-27f1c0d4e853",
        "at": "2026-11-02T09:31:55Z",
        "kind": "store",
        "subject": "postgresql",
        "state": "down",
        "previous": "up",
        "reason": "connection refused",
        "worker_id": "node1-4711-c0ffee",
        "details": {},
    },
]


def _rules() -> list[JsonValue]:
    """What `Event._fits_its_kind` holds an event to, as JSON Schema."""

    def rule(kind: Kind) -> JsonValue:
        allowed: dict[str, JsonValue] = {"state": {"enum": list(STATES[kind])}}
        if kind in _OF_AN_AGENT_TYPE:
            allowed["subject"] = {"pattern": AGENT_TYPE_PATTERN}
        return {"if": {"properties": {"kind": {"const": kind}}}, "then": {"properties": allowed}}

    return [rule(kind) for kind in STATES]


class Event(Message):
    """Something that happened. The JSON body of a message to the exchange `warren.events`."""

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES, "allOf": _rules()})

    version: Literal[1] = Field(description="Version of this format.")
    event_id: UUID = Field(description="Names the event: it may arrive twice.")
    at: UtcDatetime = Field(description="When it happened.")
    kind: Kind = Field(description="What it is about.")
    subject: Name = Field(description="Which one: a worker id, an agent type, or the name of a store.")
    state: State = Field(description="What it is now.")
    previous: State | None = Field(None, description="What it was before, where that is known.")
    reason: str | None = Field(None, description="Why, in words or as the reason of a dead task.")
    worker_id: Name | None = Field(None, description="The worker that saw it.")
    details: dict[str, JsonValue] = Field(default_factory=dict, description="Whatever else is worth telling.")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.state not in STATES[self.kind]:
            allowed = ", ".join(STATES[self.kind])
            raise ValueError(f"a {self.kind} is never {self.state!r}, only one of: {allowed}")
        if self.kind in _OF_AN_AGENT_TYPE and not re.fullmatch(AGENT_TYPE_PATTERN, self.subject):
            raise ValueError(f"{self.subject!r} is no agent type, so no subject of a {self.kind} event")
        return self

    @property
    def routing_key(self) -> str:
        """Where it is published: what listeners bind to, as in `health.#` or `task.browse.dead`."""
        if self.kind == "task":
            return f"task.{self.subject}.{self.state}"
        if self.kind == "store":
            return f"health.store.{self.state}"
        return f"health.{self.kind}.{self.subject}.{self.state}"
