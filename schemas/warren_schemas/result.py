"""The result: the answer to whoever set `reply_to` on a task."""

from typing import Literal
from uuid import UUID

from pydantic import ConfigDict, Field, JsonValue

from warren_schemas.values import Message, Reason

Status = Literal["succeeded", "dead", "cancelled"]
"""How a task ended."""

_EXAMPLES: list[JsonValue] = [
    {
        "version": 1,
        "task_id": "01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
        "status": "succeeded",
        "result": {"summary": "Revenue rose by four percent.", "words": 5},
        "error": None,
        "attempts": 1,
    },
    {
        "version": 1,
        "task_id": "01932c07-4d10-7a52-9c3e-b1f0a8d47e66",
        "status": "dead",
        "result": None,
        "error": {"type": "ConnectTimeout", "message": "example.com did not answer", "reason": "exhausted"},
        "attempts": 4,
    },
]

_ERROR_EXAMPLES: list[JsonValue] = [
    {"type": "ConnectTimeout", "message": "example.com did not answer", "reason": "exhausted"},
    {"type": "ValidationError", "message": "url: Field required", "reason": "invalid"},
]


class ResultError(Message):
    """What went wrong with a task that did not succeed."""

    model_config = ConfigDict(json_schema_extra={"examples": _ERROR_EXAMPLES})

    type: str = Field(description="The exception's class name.")
    message: str = Field(description="What it said.")
    reason: Reason | None = Field(None, description="Why the task is dead; null for one that was cancelled.")


class Result(Message):
    """The end of a task. The JSON body of a message to the task's `reply_to`, with its `correlation_id`.

    It arrives at least once: `task_id` tells a second copy.
    """

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})

    version: Literal[1] = Field(description="Version of this format.")
    task_id: UUID = Field(description="The task that ended.")
    status: Status = Field(description="How it ended.")
    result: JsonValue = Field(None, description="What the agent returned; null unless it succeeded.")
    error: ResultError | None = Field(None, description="What went wrong; null when it succeeded.")
    attempts: int = Field(ge=0, description="Attempts made; zero when it ended without having run.")
