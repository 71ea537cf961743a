"""Dead letters: a task's body unchanged, and in the headers why it died."""

from collections.abc import Mapping
from typing import Final, Self

from pydantic import ConfigDict, Field, JsonValue, ValidationError

from warren_schemas import headers as h
from warren_schemas.values import Message, Reason, UtcDatetime

# What RabbitMQ says when it dead-letters a message by itself, in our words. Whatever else it may say one
# day, it refused the message.
_BROKER_REASONS: Final[Mapping[str, Reason]] = {
    "rejected": "rejected",
    "maxlen": "rejected",
    "delivery_limit": "poison",
    "expired": "expired",
}

_EXAMPLES: list[JsonValue] = [
    {
        h.REASON: "exhausted",
        h.ERROR_TYPE: "ConnectTimeout",
        h.ERROR_MESSAGE: "example.com did not answer",
        h.TRACEBACK: "Traceback (most recent call last):\n  …\nConnectTimeout: example.com did not answer",
        h.ATTEMPTS: 4,
        h.FIRST_FAILED_AT: "2026-11-02T09:30:58.120Z",
        h.LAST_FAILED_AT: "2026-11-02T09:31:40.002Z",
        h.WORKER: "node1-4711-c0ffee",
        h.FINGERPRINT: "9f86d081884c7d65",
    },
    {h.REASON: "poison", h.ATTEMPTS: 0},
]


class DeadLetterHeaders(Message):
    """The headers of a message in the queue `warren.dead`, as a worker writes them.

    The broker writes none of them when it dead-letters a message by itself, only `x-first-death-reason`.
    """

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, json_schema_extra={"examples": _EXAMPLES}
    )

    reason: Reason = Field(alias=h.REASON, description="Why the task is dead.")
    error_type: str | None = Field(None, alias=h.ERROR_TYPE, description="The exception's class name.")
    error_message: str | None = Field(None, alias=h.ERROR_MESSAGE, description="What it said.")
    traceback: str | None = Field(None, alias=h.TRACEBACK, description="Its traceback, 8 KiB at most.")
    attempts: int = Field(0, ge=0, alias=h.ATTEMPTS, description="Attempts made.")
    first_failed_at: UtcDatetime | None = Field(
        None, alias=h.FIRST_FAILED_AT, description="When the first attempt failed."
    )
    last_failed_at: UtcDatetime | None = Field(
        None, alias=h.LAST_FAILED_AT, description="When the last attempt failed."
    )
    worker: str | None = Field(None, alias=h.WORKER, description="The worker that gave it up.")
    fingerprint: str | None = Field(
        None, alias=h.FINGERPRINT, description="The same for failures of the same kind at the same place."
    )

    @classmethod
    def from_headers(cls, headers: Mapping[str, object]) -> Self:
        """Read the headers of any dead letter, whoever wrote them. It never fails.

        Without `warren-reason`, the broker's own `x-first-death-reason` tells the reason. A header that makes
        no sense counts as missing: it must not hide the dead letter that it is on.
        """
        by_broker = _BROKER_REASONS.get(str(headers.get(h.FIRST_DEATH_REASON)), "rejected")
        # By alias alone: a producer's own header may be called `worker` or `reason`.
        aliases = [str(field.alias) for field in cls.model_fields.values()]
        known = {h.REASON: by_broker} | {name: headers[name] for name in aliases if name in headers}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            wrong = {detail["loc"][0] for detail in error.errors(include_url=False)}
            sound = {name: value for name, value in known.items() if name not in wrong}
            return cls.model_validate({h.REASON: by_broker} | sound)

    def to_headers(self) -> dict[str, str | int]:
        """The headers to publish with: only strings and integers, and none that is null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
