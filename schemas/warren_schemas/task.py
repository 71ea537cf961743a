"""The task: what a producer publishes and a worker runs."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue

from warren_schemas.values import AgentType, Message, UtcDatetime

Priority = Literal["low", "medium", "high", "urgent"]
"""How soon a task runs, compared to others of its agent type."""

AMQP_PRIORITY: Final[Mapping[Priority, int]] = {"low": 2, "medium": 4, "high": 6, "urgent": 8}
"""The AMQP property `priority` of each. RabbitMQ reads a missing one as 4 on quorum queues."""

_EXAMPLES: list[JsonValue] = [
    {
        "version": 1,
        "task_id": "01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
        "agent_type": "summarise",
        "payload": {"url": "https://example.com/report.html", "max_words": 120},
    },
    {
        "version": 1,
        "task_id": "01932c07-4d10-7a52-9c3e-b1f0a8d47e66",
        "agent_type": "browse",
        "payload": {"goal": "Find the opening hours", "start": "https://example.com"},
        "user_id": "acme-42",
        "priority": "urgent",
        "created_at": "2026-11-02T09:30:00Z",
        "expires_at": "2026-11-02T10:30:00Z",
        "not_before": "2026-11-02T09:35:00Z",
        "timeout_s": 90,
        "idempotency_key": "opening-hours-2026-11-02",
        "metadata": {"tenant": "acme", "source": "nightly"},
    },
]


class Task(Message):
    """A piece of work for an agent. The JSON body of a message to the exchange `warren.tasks`."""

    # Every delivery passes here: constraints stay in pydantic's core, and a time not given costs nothing.
    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})

    version: Literal[1] = Field(description="Version of this format.")
    task_id: UUID = Field(description="Names the task for good; publishing it again is no second task.")
    agent_type: AgentType = Field(description="The kind of agent that runs it, and the routing key.")
    payload: JsonValue = Field(description="The agent's input. Must be present; may be null.")
    user_id: str = Field("default", min_length=1, max_length=255, description="Whose task it is.")
    priority: Priority = Field("medium", description="How soon it runs among others of its agent type.")
    created_at: UtcDatetime | None = Field(None, description="When the producer made it.")
    expires_at: UtcDatetime | None = Field(
        None, description="Dead, with reason expired, if not started by then."
    )
    not_before: UtcDatetime | None = Field(None, description="Not run before this time.")
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Time for one attempt, in seconds, if it is shorter than the agent's own."
    )
    idempotency_key: Annotated[str, Field(max_length=255)] | None = Field(
        None, description="The producer's own name for it: a second submit with the same one makes no task."
    )
    replay_of: UUID | None = Field(None, description="The dead task that this one repeats.")
    metadata: dict[str, str] = Field(
        default_factory=dict, description="The producer's notes; Warren keeps them."
    )
