"""The AsyncAPI document: every exchange and queue, what travels there, and who sends and receives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import warren_schemas as ws
from warren.bus.topology import Exchange, Names, exchanges
from warren.settings import Settings

Document = dict[str, Any]

CONTRACT_VERSION: Final = "1.0.0"
"""Version of the contract as a whole; its major number is the `version` in every message."""

_NAMES: Final = Names(Settings.model_fields["namespace"].default)
_BINDING_VERSION: Final = "0.3.0"

# The word of a routing key that tells one event's subject from another's. There is one store, so none.
_SUBJECTS: Final[Mapping[ws.Kind, str]] = {
    "worker": "worker_id",
    "agent": "agent_type",
    "breaker": "agent_type",
    "queue": "agent_type",
    "task": "agent_type",
}

_ABOUT: Final = (
    "Runs agents as a service on RabbitMQ. Every message is a JSON object with a `version`; unknown fields "
    "are ignored. The operations are those of Warren's workers and of its client: any program that publishes "
    "tasks and receives results, in any language, stands in for the client."
)


def document(payloads: Mapping[str, Any]) -> Document:
    """The AsyncAPI 3.0.0 document for these payload schemas, by model name, each with its `examples`."""
    channels = _channels()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Warren",
            "version": CONTRACT_VERSION,
            "description": _ABOUT,
            "license": {"name": "MIT"},
        },
        "defaultContentType": ws.CONTENT_TYPE,
        "servers": {
            "local": {
                "host": "127.0.0.1:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ; its address is a setting.",
            }
        },
        "channels": channels,
        "operations": _operations(channels),
        "components": {
            "messages": _messages(payloads),
            "parameters": _parameters(),
            "schemas": {**payloads, "TaskHeaders": _task_headers()},
        },
    }


def _ref(path: str) -> Document:
    return {"$ref": f"#/{path}"}


def _parameters() -> Document:
    return {
        "agent_type": {"description": f"An agent type: {ws.AGENT_TYPE_PATTERN}", "examples": ["summarise"]},
        "worker_id": {"description": f"A worker: {ws.NAME_PATTERN}", "examples": ["node1-4711-c0ffee"]},
    }


# --- messages ---------------------------------------------------------------------------------------------


def _property(json_type: str, description: str, **more: Any) -> Document:
    return {"type": json_type, "description": description, **more}


def _task_headers() -> Document:
    """AsyncAPI has one place for a message's metadata: AMQP properties stand among the headers."""
    priorities = ", ".join(f"{number} for {name}" for name, number in ws.AMQP_PRIORITY.items())
    expiration = "AMQP property, in ms: to the next ageing step or to `expires_at`, whichever is first."
    return {
        "type": "object",
        "required": ["message_id", "content_type", "delivery_mode"],
        "properties": {
            "message_id": _property("string", "AMQP property: the `task_id`.", format="uuid"),
            "content_type": _property("string", "AMQP property.", const=ws.CONTENT_TYPE),
            "delivery_mode": _property("integer", "AMQP property: persistent.", const=2),
            "priority": _property(
                "integer", f"AMQP property: {priorities}.", enum=list(ws.AMQP_PRIORITY.values())
            ),
            "expiration": _property("string", expiration, pattern="^[0-9]+$"),
            "reply_to": _property("string", "AMQP property: the queue that the result goes to."),
            "correlation_id": _property("string", "AMQP property: comes back with the result."),
            ws.TRACEPARENT: _property("string", "W3C Trace Context of the producer."),
            ws.TRACESTATE: _property("string", "What goes with `traceparent`."),
            ws.ATTEMPTS: _property("integer", "Attempts already made.", minimum=0),
            ws.REPUBLISHED: _property("boolean", "This may be a second copy: check before running."),
            ws.REPLAY: _property("string", "Unique id of one replay: a new life of the task."),
        },
    }


def _task_header_example(task: Document) -> Document:
    return {
        "message_id": task["task_id"],
        "content_type": ws.CONTENT_TYPE,
        "delivery_mode": 2,
        "priority": ws.AMQP_PRIORITY[task.get("priority", "medium")],
        "reply_to": "amq.rabbitmq.reply-to",
        "correlation_id": task["task_id"],
    }


def _result_headers() -> Document:
    correlation = _property("string", "AMQP property: the task's own, or else its `task_id`.")
    trace = {
        ws.TRACEPARENT: _property("string", "W3C Trace Context: the run's, or else the task's own."),
        ws.TRACESTATE: _property("string", "What goes with `traceparent`."),
    }
    return {"type": "object", "properties": {"correlation_id": correlation} | trace}


def _broker_headers() -> Document:
    reasons = ["rejected", "expired", "maxlen", "delivery_limit"]
    death = _property("string", "Why the broker dead-lettered it, the first time.", enum=reasons)
    return {
        "type": "object",
        "required": [ws.FIRST_DEATH_REASON],
        "properties": {ws.FIRST_DEATH_REASON: death},
    }


def _messages(payloads: Mapping[str, Any]) -> Document:
    tasks, results = payloads["Task"]["examples"], payloads["Result"]["examples"]
    correlated = {"correlationId": {"location": "$message.header#/correlation_id"}}
    return {
        "Task": correlated
        | _message("Task", "Work for an agent.")
        | {
            "headers": _ref("components/schemas/TaskHeaders"),
            "examples": [{"headers": _task_header_example(task), "payload": task} for task in tasks],
        },
        "Result": correlated
        | _message("Result", "How a task ended.")
        | {
            "headers": _result_headers(),
            "examples": [{"headers": {"correlation_id": r["task_id"]}, "payload": r} for r in results],
        },
        "Event": _message("Event", "Something that happened.")
        | {"examples": [{"payload": event} for event in payloads["Event"]["examples"]]},
        "DeadLetter": _message(
            "Task", "A task given up by a worker. Reason `invalid`: the body is what came."
        )
        | {
            "headers": _ref("components/schemas/DeadLetterHeaders"),
            "examples": [
                {"headers": headers, "payload": tasks[-1]}
                for headers in payloads["DeadLetterHeaders"]["examples"]
            ],
        },
        "BrokerDeadLetter": _message("Task", "A task that the broker itself dead-lettered.")
        | {
            "headers": _broker_headers(),
            "examples": [{"headers": {ws.FIRST_DEATH_REASON: "delivery_limit"}, "payload": tasks[0]}],
        },
    }


def _message(payload: str, summary: str) -> Document:
    return {"summary": summary, "payload": _ref(f"components/schemas/{payload}")}


# --- channels ---------------------------------------------------------------------------------------------


def _channels() -> Document:
    tasks, dlx, events, control = exchanges(_NAMES)
    agent_type = {"parameters": {"agent_type": _ref("components/parameters/agent_type")}}
    channels = {
        "tasks": _exchange(
            tasks, "{agent_type}", "Publish with `mandatory`: a task of an unknown type comes back.", "Task"
        )
        | agent_type,
        "taskQueue": _queue(_NAMES.queue("{agent_type}"), "Tasks of one agent type wait here.", "Task")
        | agent_type,
        "deadLetterExchange": _exchange(
            dlx, None, "Splits what leaves a task queue: expired to ageing, the rest to dead.", "DeadLetter"
        ),
        "ageing": _queue(_NAMES.ageing, "Tasks that waited one step: promoted, or dead if expired.", "Task"),
        "dead": _queue(_NAMES.dead, "Dead tasks, their body unchanged.", "DeadLetter", "BrokerDeadLetter"),
        "results": _channel(
            None,
            "The default exchange: the routing key is the task's `reply_to`.",
            ("Result",),
            {"is": "routingKey", "exchange": {"name": "", "type": "default"}},
        ),
    }
    for kind in ws.STATES:
        channels[f"{kind}Events"] = _event_channel(kind, events)
    channels["control"] = _exchange(
        control, None, "Between workers; its messages are no part of the contract."
    )
    return channels


def _event_channel(kind: ws.Kind, exchange: Exchange) -> Document:
    subject = _SUBJECTS.get(kind)
    prefix = "task" if kind == "task" else f"health.{kind}"
    routing_key = f"{prefix}.{{{subject}}}.{{state}}" if subject else f"{prefix}.{{state}}"
    parameters: Document = {subject: _ref(f"components/parameters/{subject}")} if subject else {}
    parameters["state"] = {"description": "The event's `state`.", "enum": list(ws.STATES[kind])}
    return _exchange(exchange, routing_key, f"Events of kind {kind}.", "Event") | {"parameters": parameters}


def _exchange(exchange: Exchange, routing_key: str | None, description: str, *messages: str) -> Document:
    where = {"name": exchange.name, "type": exchange.kind, "durable": True, "autoDelete": False}
    return _channel(routing_key, description, messages, {"is": "routingKey", "exchange": where})


def _queue(name: str, description: str, *messages: str) -> Document:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False}
    return _channel(name, description, messages, {"is": "queue", "queue": queue})


def _channel(address: str | None, description: str, messages: tuple[str, ...], amqp: Document) -> Document:
    return {
        "address": address,
        "description": description,
        "messages": {name: _ref(f"components/messages/{name}") for name in messages},
        "bindings": {"amqp": amqp | {"bindingVersion": _BINDING_VERSION}},
    }


# --- operations -------------------------------------------------------------------------------------------


def _operations(channels: Document) -> Document:
    def operation(action: str, channel: str, summary: str, **amqp: Any) -> Document:
        messages = channels[channel]["messages"]
        return {
            "action": action,
            "channel": _ref(f"channels/{channel}"),
            "summary": summary,
            "messages": [_ref(f"channels/{channel}/messages/{name}") for name in messages],
        } | ({"bindings": {"amqp": amqp | {"bindingVersion": _BINDING_VERSION}}} if amqp else {})

    reply = {
        "reply": {
            "address": {"location": "$message.header#/reply_to"},
            "channel": _ref("channels/results"),
            "messages": [_ref("channels/results/messages/Result")],
        }
    }
    operations = {
        "publishTask": operation("send", "tasks", "A client submits a task.", deliveryMode=2, mandatory=True)
        | reply,
        "receiveTask": operation("receive", "taskQueue", "A worker runs a task.", ack=True) | reply,
        "sendResult": operation("send", "results", "A worker answers a task that has a `reply_to`."),
        "receiveResult": operation("receive", "results", "A client takes the answer."),
        "sendDeadLetter": operation(
            "send", "deadLetterExchange", "A worker gives a task up.", deliveryMode=2, mandatory=True
        ),
        "receiveDeadLetter": operation(
            "receive", "dead", "Dead tasks are taken in for people to look at.", ack=True
        ),
        "receiveAgedTask": operation("receive", "ageing", "A worker promotes a task that waited.", ack=True),
    }
    for kind in ws.STATES:
        channel, name = f"{kind}Events", f"{kind.capitalize()}Event"
        operations[f"send{name}"] = operation("send", channel, f"A worker publishes an event of kind {kind}.")
        operations[f"receive{name}"] = operation(
            "receive", channel, f"Anyone listens to events of kind {kind}."
        )
    return operations
