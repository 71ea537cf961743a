"""Names of the AMQP headers that Warren writes or reads."""

from typing import Final

# On any task.
TRACEPARENT: Final = "traceparent"
"""W3C Trace Context of the producer."""
TRACESTATE: Final = "tracestate"
"""What goes with it, for those who made it."""
ATTEMPTS: Final = "warren-attempts"
"""Attempts already made, an integer; none when missing."""
REPUBLISHED: Final = "warren-republished"
"""True on a message that may be a second copy: whoever runs it looks first whether it ran already."""
REPLAY: Final = "warren-replay"
"""Unique id of one replay: it starts a new life of the task, in which nothing has run yet."""
DISPATCH: Final = "warren-dispatch"
"""How often the store has had this task published, an integer: a smaller number is no longer the live one."""

# On a dead letter.
REASON: Final = "warren-reason"
ERROR_TYPE: Final = "warren-error-type"
ERROR_MESSAGE: Final = "warren-error-message"
TRACEBACK: Final = "warren-traceback"
FIRST_FAILED_AT: Final = "warren-first-failed-at"
LAST_FAILED_AT: Final = "warren-last-failed-at"
WORKER: Final = "warren-worker"
FINGERPRINT: Final = "warren-fingerprint"

# Written by RabbitMQ, when it dead-letters a message.
FIRST_DEATH_REASON: Final = "x-first-death-reason"
