"""Every error that Warren raises, as one tree.

WarrenError
├── ConfigurationError        a setting, an agent or a topology cannot work
│   ├── AgentError            an agent's name, signature or share of the prefetch
│   └── QueueMismatch         a queue exists with other arguments
├── BrokerError               the broker failed or refused something
│   ├── BrokerNotFound        no broker was named, none runs here and none can be started
│   ├── BrokerUnavailable     nothing answers, or the connection was lost and stayed away
│   ├── AccessRefused         wrong password, unknown virtual host, missing permission
│   ├── NotDeclared           the queue or exchange is not there (yet)
│   └── PublishError          one message did not get through
│       ├── QueueFull         the queue is at its capacity: try again later
│       ├── UnknownAgentType  no queue takes this agent type
│       ├── Unroutable        no queue takes this routing key (a reply queue that vanished)
│       ├── PublishTimeout    no confirm in time: it may or may not have arrived
│       └── MessageRefused    the broker will never take this message: a retry is useless
│           ├── MessageTooLarge   its body is over `max_payload_bytes`, or over the broker's own limit
│           └── HeadersTooLarge   its headers do not fit into a frame
├── StoreError                the store failed or refused something
│   ├── StoreUnavailable      it does not answer now: worth waiting for
│   │   └── StoreBusy         all connections of this process are in use
│   ├── StoreRefused          it does not accept the data: a retry is useless
│   ├── StoreUnusable         it is damaged, read-only or of another schema version
│   └── FenceLost             a newer run has taken this task over: stop
├── IdempotencyConflict       an idempotency key was used before, for another agent type or payload
├── StepError                 a step's name was used twice, or its value is no JSON or too large
├── AttemptOver               a step of an attempt that has ended: its thread is to stop
├── CommandFailed             a `CommandAgent`'s program did not start, failed, or printed no JSON
├── HttpFailed                an `HttpAgent`'s server was not reached, failed, or answered no JSON
├── InvalidTask               not a task, or not one of a version that we read
├── InvalidResult             an answer that is no result, or not one that can be read
├── TaskFailed                the task ended dead or cancelled (raised by `Client.run`)
├── ResultTimeout             no result came in time (the task may still be running)
├── CallerTimeout             an attempt outlasted the `timeout_s` of its task, shorter than the operator's
├── Reject                    raised by an agent: end this task now, without a retry
└── RetryAfter                raised by an agent: try this task again in so many seconds
"""

from __future__ import annotations

import math


class WarrenError(Exception):
    """The root of every error that Warren raises."""


class ConfigurationError(WarrenError):
    """A setting, an agent or a topology cannot work."""


class AgentError(ConfigurationError):
    """An agent's name, signature, options or share of the prefetch cannot work."""


class QueueMismatch(ConfigurationError):
    """A queue or exchange exists on the broker with other arguments than ours.

    The broker answers such a declaration with 406 PRECONDITION_FAILED (AMQP 0-9-1, `queue.declare`).
    """

    def __init__(self, name: str, argument: str, wanted: str, found: str) -> None:
        self.name, self.argument, self.wanted, self.found = name, argument, wanted, found
        super().__init__(
            f"{name!r} exists on the broker with {argument} = {found}, but the settings ask for {wanted}. "
            f"Either set it back, or empty and delete {name!r} and start again, "
            "or use another WARREN_NAMESPACE."
        )


class BrokerError(WarrenError):
    """The broker failed or refused something.

    `may_have_arrived`: an earlier publish of the message lost its confirm, so the broker may have it.
    """

    may_have_arrived: bool = False


class BrokerNotFound(BrokerError):
    """No broker was named, none runs on this machine, and none can be started."""


class BrokerUnavailable(BrokerError):
    """Nothing answers at the broker's address, or the connection was lost and stayed away."""


class AccessRefused(BrokerError):
    """The broker refuses us: a wrong password, an unknown virtual host, a missing permission."""


class NotDeclared(BrokerError):
    """The queue or exchange is not there: the first worker declares what it needs."""


class PublishError(BrokerError):
    """One message was not published; other messages are not affected."""


class QueueFull(PublishError):
    """The queue is at `queue_capacity` and refuses more (`x-overflow: reject-publish`)."""


class UnknownAgentType(PublishError):
    """No queue takes tasks of this agent type: no worker with such an agent was ever started."""


class Unroutable(PublishError):
    """No queue takes messages with this routing key, for example a reply queue that vanished."""


class PublishTimeout(PublishError):
    """The broker did not confirm in time: the message may or may not have arrived.

    It is safe to publish the same task (same `task_id`) again.
    """

    may_have_arrived = True


class MessageRefused(PublishError):
    """The broker refuses this message, or AMQP cannot carry it: a retry is useless."""


class MessageTooLarge(MessageRefused):
    """The message is over `max_payload_bytes`, or over the broker's own limit."""


class HeadersTooLarge(MessageRefused):
    """The headers and properties of the message do not fit into one frame (AMQP 0-9-1, `frame-max`)."""


class StoreError(WarrenError):
    """The store failed or refused something."""


class StoreUnavailable(StoreError):
    """The store does not answer, or cannot write right now. It may heal by itself."""


class StoreBusy(StoreUnavailable):
    """All connections of this process to the store are in use. The store itself may be well."""


class StoreUnusable(StoreError):
    """The store is damaged, read-only, or of another schema version: the operator has to act."""


class StoreRefused(StoreError):
    """The store does not accept the data. A retry changes nothing."""


class FenceLost(StoreError):
    """A newer run has taken the task over. The store refuses all further writes of this run: stop."""


class IdempotencyConflict(WarrenError):
    """The idempotency key was used before, for another agent type or another payload.

    `task_id` is the task that has the key. Nothing was submitted.
    """

    def __init__(self, key: str, task_id: str) -> None:
        self.key, self.task_id = key, task_id
        super().__init__(
            f"the idempotency key {key!r} is of task {task_id}, which has another agent type or payload: "
            "use a new key for a new task"
        )


class StepError(WarrenError):
    """A step's name was used twice in one run, or its value is no JSON or over `max_result_bytes`."""


class AttemptOver(WarrenError):
    """The attempt has timed out or was cancelled: code that still runs, in a thread say, must stop."""


class CommandFailed(WarrenError):
    """The program of a `CommandAgent` did not start, failed, or printed too much or what is no JSON."""


class HttpFailed(WarrenError):
    """The server of an `HttpAgent` was not reached, failed, or answered too much or what is no JSON."""


class InvalidTask(WarrenError):
    """The message is not a task, or not one of a version that this Warren reads."""


class InvalidResult(WarrenError):
    """The answer to a task is no result, or not one that this Warren reads."""


class TaskFailed(WarrenError):
    """The task ended dead or cancelled. `error` is what the result said (type, message, reason)."""

    def __init__(self, task_id: str, status: str, error_type: str, message: str, reason: str) -> None:
        self.task_id, self.status, self.error_type, self.reason = task_id, status, error_type, reason
        super().__init__(f"task {task_id} ended {status} ({reason}): {error_type}: {message}")


class ResultTimeout(WarrenError):
    """No result arrived in time; the task itself may still be waiting or running."""


class CallerTimeout(WarrenError, TimeoutError):
    """An attempt outlasted its task's own `timeout_s`, which was shorter than the operator's limit.

    It says nothing about the agent: neither its breaker nor its health counts it.
    """


class Reject(WarrenError):
    """Raise it in an agent to end the task now: dead, reason rejected, no retry."""


class RetryAfter(WarrenError):
    """Raise it in an agent to have the task run again after `seconds`. It counts as an attempt.

    A time beyond the year 9999 is kept as the end of that year. Raises ValueError for seconds that are
    negative, infinite or no number: in an agent that is a failure like any other.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        try:
            self.seconds = float(seconds)
        except (TypeError, ValueError, OverflowError):
            self.seconds = math.nan
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"RetryAfter takes a finite number of seconds, zero or more, not {seconds!r}")
        super().__init__(reason or f"asked to be run again in {self.seconds:g} s")
