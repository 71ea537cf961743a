"""Which queues an answer may be sent to. A producer names one in `reply_to`, and Warren publishes to it with
its own rights, so a producer could otherwise write to queues that it has no right to."""

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

# RabbitMQ's direct reply-to: such a name leads to the channel that asked, and nowhere else.
DIRECT: Final = "amq.rabbitmq.reply-to."


class Replies:
    """The rule for `reply_to` in one namespace; `refusals` counts what it refused."""

    def __init__(self, settings: Settings) -> None:
        names = Names(settings.namespace)
        self._ours, self._clients = names.prefix, names.replies
        self._allowed = settings.reply_to_patterns
        self.refusals = Refusals("reply_to.refused")

    def allow(self, queue: str) -> bool:
        """Whether answers may go to this queue. One that is refused is counted, and logged now and then."""
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
    """The answer to whoever asked for it, through the default exchange."""
    return Message(
        exchange="",
        routing_key=reply_to,
        body=result,
        message_id=str(task_id),
        headers=headers or {},
        correlation_id=correlation_id or str(task_id),
    )


def result_body(task: Task, result: bytes, attempts: int) -> bytes:
    """A succeeded `Result` as JSON, around a result that is JSON already.

    Encoding it through the model would decode and encode up to `max_result_bytes` once more.
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
    """A dead `Result` as JSON, for a result that the broker does not carry.

    The store says how the task itself ended. Nothing else than dead would tell the one who waits that
    there is no result.
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
    """The best guess at the task id of a message that is no task: its message id, or its correlation id.

    Neither need be a UUID, but a result has to have one: the nil UUID (RFC 9562) says that it is unknown.
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
