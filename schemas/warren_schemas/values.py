"""What the messages have in common: their base, their version, names and times."""

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints

VERSION: Final = 1
"""The version of every message; a reader refuses any other."""

CONTENT_TYPE: Final = "application/json"
"""The AMQP property `content_type` of every message."""

AGENT_TYPE_PATTERN: Final = r"^[a-z][a-z0-9_-]{0,62}$"
"""Regular expression of agent types. No dot: they are one word of a routing key and of a queue's name."""

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"
"""Regular expression of worker ids and of an event's subject: one word of a routing key, so no dot either."""

Reason = Literal["exhausted", "invalid", "rejected", "expired", "poison", "unknown_agent"]
"""Why a task is dead."""

AgentType = Annotated[str, StringConstraints(pattern=AGENT_TYPE_PATTERN)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the year 1 or after the year 9999 in UTC") from None


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with any offset, kept and written in UTC. A time without an offset is refused."""


class Message(BaseModel):
    """Frozen; unknown fields are ignored, so that a newer writer does not stop an older reader."""

    # JSON has no NaN and no Infinity, so nothing may be made with one. A foreign body that has them inside
    # its payload is read all the same: to look at every value again would cost the hot path too much.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
