"""Reply messages, and the rule for the queues that they may go to.

A producer names the queue in `reply_to`, and Warren publishes there with its own permissions. Without the
rule, a producer could write to queues that it has no permission for.
"""

from __future__ import annotations

from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Final
from uuid import UUID

from warren.bus.connection import Headers, Message
from warren.bus.delivery import Delivery
from warren.bus.topology import Names
from warren.settings import Settings
from warren.support.failure import Failure
from warren.support.refusals import Refusals
from warren_schemas import (
    Reason,
    Result,
    Task,
)

# RabbitMQ's direct reply-to: a name with this prefix leads only to the channel that asked.
DIRECT: Final = "amq.rabbitmq.reply-to."


class Replies:
    """The rule for `reply_to` in one namespace. `refusals` counts the refused queues."""

    def __init__(self, settings: Settings) -> None:
        names = Names(settings.namespace)
        self._ours, self._clients = names.prefix, names.replies
        self._allowed = settings.reply_to_patterns
        self.refusals = Refusals("reply_to.refused")

    def allow(self, queue: str) -> bool:
        """Whether replies may go to this queue. A refusal is counted, and logged at a limited rate."""
        if queue.startswith((self._clients, DIRECT)):
            return True
        if queue.startswith(self._ours):
            self.refusals.note("reply_to names a queue of Warren's own", reply_to=queue)
            return False
        if not any(fnmatchcase(queue, pattern) for pattern in self._allowed):
            self.refusals.note("WARREN_REPLY_TO_ALLOWED does not have this queue", reply_to=queue)
            return False
        return True


def result_message(
    result: bytes,
    task_id: UUID,
    reply_to: str,
    correlation_id: str | None,
    headers: Headers | None = None,
) -> Message:
    """The reply message, for the default exchange."""
    return Message(
        exchange="",
        routing_key=reply_to,
        body=result,
        message_id=str(task_id),
        headers=headers or {},
        correlation_id=correlation_id or str(task_id),
    )


def result_body(task: Task, result: bytes, attempts: int) -> bytes:
    """A succeeded `Result` as JSON. `result` is JSON already.

    Encoding through the model would decode and encode up to `max_result_bytes` once more.
    """
    head = (
        f'{{"version":1,"task_id":"{task.task_id}","status":"succeeded","attempts":{attempts},"error":null,'
    )
    return head.encode() + b'"result":' + result + b"}"


def cancelled_body(task_id: UUID, attempts: int) -> bytes:
    """A cancelled `Result` as JSON."""
    fields = {"version": 1, "task_id": task_id, "status": "cancelled", "attempts": attempts}
    return Result.model_validate(fields).model_dump_json().encode()


def undelivered_body(task_id: UUID, attempts: int, problem: str) -> bytes:
    """A dead `Result` as JSON, for a result that the broker refuses.

    The store keeps how the task itself ended. Only the status dead tells the waiting client that no result
    will come.
    """
    fields = {
        "version": 1,
        "task_id": task_id,
        "status": "dead",
        "attempts": attempts,
        "error": {
            "type": "MessageTooLarge",
            "message": f"the task ended, but its result cannot be sent: {problem}",
            "reason": "rejected",
        },
    }
    return Result.model_validate(fields).model_dump_json().encode()


def id_of_what_is_no_task(delivery: Delivery) -> UUID:
    """The likely task id of a message that is not a task: its message id, or else its correlation id.

    A result must have a UUID. If neither id is one, the nil UUID (RFC 9562) stands for unknown.
    """
    for text in (delivery.properties.message_id, delivery.properties.correlation_id):
        with suppress(ValueError):
            return UUID(text or "")
    return UUID(int=0)


def dead_body(task_id: UUID, reason: Reason, failure: Failure, attempts: int) -> bytes:
    """A dead `Result` as JSON."""
    return (
        Result.model_validate(
            {
                "version": 1,
                "task_id": task_id,
                "status": "dead",
                "error": {
                    "type": failure.error_type,
                    "message": failure.message,
                    "reason": reason,
                },
                "attempts": attempts,
            }
        )
        .model_dump_json()
        .encode()
    )
