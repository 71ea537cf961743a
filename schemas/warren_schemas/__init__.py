"""What travels between Warren and everybody else, as pydantic models.

Every message is plain JSON with a `version`; unknown fields are ignored. Build one with its model, write it
with `model_dump_json()` and read it with `model_validate_json(body)`. The same contract stands, for any
language, as JSON Schema and AsyncAPI documents beside this package.
"""

from warren_schemas.dead_letter import DeadLetterHeaders
from warren_schemas.event import STATES, Event, Kind, State
from warren_schemas.headers import (
    ATTEMPTS,
    DISPATCH,
    ERROR_MESSAGE,
    ERROR_TYPE,
    FINGERPRINT,
    FIRST_DEATH_REASON,
    FIRST_FAILED_AT,
    LAST_FAILED_AT,
    REASON,
    REPLAY,
    REPUBLISHED,
    TRACEBACK,
    TRACEPARENT,
    TRACESTATE,
    WORKER,
)
from warren_schemas.heartbeat import LONGEST_INTERVAL, SHORTEST_INTERVAL, Heartbeat, WorkerTally
from warren_schemas.result import Result, ResultError, Status
from warren_schemas.task import AMQP_PRIORITY, Priority, Task
from warren_schemas.values import AGENT_TYPE_PATTERN, CONTENT_TYPE, NAME_PATTERN, VERSION, Reason

__all__ = [
    "AGENT_TYPE_PATTERN",
    "AMQP_PRIORITY",
    "ATTEMPTS",
    "CONTENT_TYPE",
    "DISPATCH",
    "ERROR_MESSAGE",
    "ERROR_TYPE",
    "FINGERPRINT",
    "FIRST_DEATH_REASON",
    "FIRST_FAILED_AT",
    "LAST_FAILED_AT",
    "LONGEST_INTERVAL",
    "NAME_PATTERN",
    "REASON",
    "REPLAY",
    "REPUBLISHED",
    "SHORTEST_INTERVAL",
    "STATES",
    "TRACEBACK",
    "TRACEPARENT",
    "TRACESTATE",
    "VERSION",
    "WORKER",
    "DeadLetterHeaders",
    "Event",
    "Heartbeat",
    "Kind",
    "Priority",
    "Reason",
    "Result",
    "ResultError",
    "State",
    "Status",
    "Task",
    "WorkerTally",
]
