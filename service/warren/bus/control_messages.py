"""Commands to all workers, sent through the control exchange."""

from __future__ import annotations

from typing import Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, model_validator

from warren.bus.connection import Message
from warren.bus.messages import new_id
from warren.bus.topology import Names
from warren.settings import KIB
from warren_schemas.values import AgentType

LARGEST: Final = 4 * KIB  # bytes of a command


class Command(BaseModel):
    """A message on the control exchange: an action and its subject.

    `watch` goes from worker to worker: the worker that runs the task must write signs of life to its row.
    """

    version: Literal[1] = 1
    action: Literal["cancel", "pause", "resume", "watch"]
    task_id: UUID | None = None
    agent_type: AgentType | None = None

    @model_validator(mode="after")
    def _has_its_subject(self) -> Self:
        if (self.task_id if self.action in {"cancel", "watch"} else self.agent_type) is None:
            raise ValueError(f"{self.action} of nothing")
        return self


def control_message(command: Command, names: Names) -> Message:
    """The message that sends a command to all workers. It is not mandatory: there may be no worker."""
    return Message(
        exchange=names.control,
        routing_key="",
        body=command.model_dump_json(exclude_none=True).encode(),
        message_id=str(new_id()),
        mandatory=False,
    )
