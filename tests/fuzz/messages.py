"""Messages: tasks on their three ways, commands, events and results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from random import Random
from typing import Any, Final, TypeAlias
from uuid import UUID

from tests.fuzz import amqp
from tests.fuzz.amqp import Publish
from tests.fuzz.shapes import Change, Deed, World
from tests.fuzz.values import json_object, raw_of, some_uuid, utc_now
from warren_schemas import headers as h

Made: TypeAlias = tuple[str, tuple[Deed, ...]]
"""The course that is taken, in words, and what is done."""
Changes: TypeAlias = tuple[Change, ...]

COURSES: Final = ("plain", "answered", "failing", "delayed", "second copy", "counted", "same id", "same key")
STATES: Final = (
    ("worker", "heartbeat"),
    ("worker", "started"),
    ("worker", "lost"),
    ("worker", "stopped"),
    ("breaker", "open"),
    ("agent", "unhealthy"),
    ("queue", "full"),
    ("store", "down"),
    ("task", "dead"),
    ("task", "progress"),
)


class Draft:
    """A message before it is written: JSON texts of its body, properties and headers encoded."""

    def __init__(self, fields: Mapping[str, Any], headers: Mapping[str, bytes] | None = None) -> None:
        self.fields = dict(fields)
        self.headers: dict[str, bytes] = dict(headers or {})
        self.properties = {"content_type": amqp.short("application/json"), "message_id": amqp.short("m")}
        self._body: bytes | None = None

    def change(self, changes: Changes, world: World) -> None:
        """Put extremes in their places."""
        for one in changes:
            area, _, name = one.place.partition(".")
            match area:
                case "body" if not name:
                    self._body = raw_of(one.value)
                case "body":
                    self._set(name, one)
                case "property":
                    self.properties[name] = _addressed(one.value, world)
                case "header":
                    self.headers[one.value[0]] = one.value[1]

    def _set(self, name: str, change: Change) -> None:
        if change.value is None:
            self.fields.pop(name, None)
        else:
            self.fields[name] = '{"a": "1", "a": "2"}' if change.told == "twice" else change.value

    def publish(self, exchange: str, routing_key: str) -> Publish:
        """The message as it goes over the wire."""
        if self.headers:
            self.properties["headers"] = amqp.table(
                (b"\xff" + name[1:].encode() if name.startswith("\xff") else name, value)
                for name, value in self.headers.items()
            )
        body = json_object(self.fields) if self._body is None else self._body
        return Publish(exchange, routing_key, body, self.properties)


def _addressed(value: str | bytes, world: World) -> bytes:
    if isinstance(value, bytes):
        return value
    names = world.names
    queues = {
        "dead": names.dead,
        "ageing": names.ageing,
        "echo": names.queue("echo"),
        "replies": world.replies,
    }
    return amqp.short(value.format(**queues))


def task(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A task to its exchange."""
    course, agent_type = random.choice(COURSES), _agent_type(random)
    draft = _on(course, number, agent_type, world, random)
    draft.change(changes, world)
    return course, (draft.publish(world.names.tasks, "fail" if course == "failing" else agent_type),)


def letter(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A dead letter, through its exchange or straight to its queue."""
    course = random.choice(COURSES)
    exchange, key = random.choice(((world.names.dlx, "echo"), ("", world.names.dead)))
    draft = _on(course, number, _agent_type(random), world, random)
    now = utc_now().isoformat()
    draft.headers |= {h.REASON: amqp.long("exhausted"), h.ERROR_TYPE: amqp.long("E"),
                      h.ERROR_MESSAGE: amqp.long("m"),
                      h.TRACEBACK: amqp.long("t"), h.ATTEMPTS: b"I\0\0\0\2",
                      h.FIRST_FAILED_AT: amqp.long(now),
                      h.LAST_FAILED_AT: amqp.long(now), h.WORKER: amqp.long("w"),
                      h.FINGERPRINT: amqp.long("f" * 16)}  # fmt: skip
    if random.random() < 0.2:
        draft.headers.pop(h.REASON)
        why = random.choice(("rejected", "maxlen", "delivery_limit", "expired"))
        draft.headers[h.FIRST_DEATH_REASON] = amqp.long(why)
    draft.change(changes, world)
    return f"{course}, {'through the dlx' if exchange else 'to the queue'}", (draft.publish(exchange, key),)


def ageing(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A task that has waited a step."""
    course = random.choice(COURSES)
    draft = _on(course, number, _agent_type(random), world, random)
    draft.headers[h.FIRST_DEATH_REASON] = amqp.long("expired")
    draft.change(changes, world)
    return course, (draft.publish("", world.names.ageing),)


def agent(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A payload for one of the agents."""
    course = told = random.choice(("plain", "answered", "delayed", "second copy"))
    agent_type, value = changes[-1].place, changes[-1].value
    if agent_type == "strict":
        name = random.choice(("at", "id", "amount", "colour", "number", "ratio", "text", "inner"))
        value, told = json_object({name: value}), f"{course}, {name}"
    draft = _on(course, number, agent_type, world, random)
    draft.fields["payload"] = value
    return told, (draft.publish(world.names.tasks, agent_type),)


def control(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A command to every worker."""
    course = random.choice(("cancel", "pause", "resume"))
    draft = Draft({"version": "1", "action": f'"{course}"', "agent_type": '"pausable"'})
    if course == "cancel":
        draft = Draft({"version": "1", "action": '"cancel"', "task_id": f'"{some_uuid(random)}"'})
    draft.change(changes, world)
    return course, (draft.publish(world.names.control, ""),)


def event(number: int, changes: Changes, world: World, random: Random) -> Made:
    """An event, most of them heartbeats of workers that are not there."""
    is_heartbeat = any(one.place.startswith("details.") for one in changes) or random.random() < 0.4
    kind, state = ("worker", "heartbeat") if is_heartbeat else random.choice(STATES)
    subject = "echo" if kind in ("breaker", "agent", "queue", "task") else f"forged-{number}"
    details: dict[str, Any] = {"interval_s": "0.5"}
    for one in changes:
        area, _, path = one.place.partition(".")
        if area == "details":
            _put(details, path.split("."), one.value)
    draft = Draft({"version": "1", "event_id": f'"{some_uuid(random)}"',
                   "at": json.dumps(utc_now().isoformat()),
                   "kind": f'"{kind}"', "subject": f'"{subject}"', "state": f'"{state}"',
                   "worker_id": f'"forged-{number}"', "details": _written(details)})  # fmt: skip
    draft.change(changes, world)
    key = f"task.{subject}.{state}" if kind == "task" else f"health.{kind}.{subject}.{state}"
    return f"{kind} {state}", (draft.publish(world.names.events, key),)


def reply(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A result to the bystanders' own client."""
    draft = Draft({"version": "1", "task_id": f'"{some_uuid(random)}"', "status": '"succeeded"',
                   "result": "1", "error": "null", "attempts": "1"})  # fmt: skip
    draft.change(changes, world)
    return "to a client", (draft.publish("", world.replies),)


def _agent_type(random: Random) -> str:
    return random.choice(("echo", "echo", "blocking", "remember"))


def _on(course: str, number: int, agent_type: str, world: World, random: Random) -> Draft:
    """An ordinary task that takes this course."""
    task_id = some_uuid(random)
    soon = json.dumps((utc_now() + timedelta(seconds=0.4)).isoformat())
    draft = _draft(task_id, agent_type, number)
    match course:
        case "answered":
            draft.properties |= {
                "reply_to": amqp.short(world.replies),
                "correlation_id": amqp.short(f"c{number}"),
            }
        case "failing":
            draft = _draft(task_id, "fail", number)
        case "delayed":
            draft.fields["not_before"] = soon
            draft.properties["reply_to"] = amqp.short(world.replies)
        case "second copy":
            draft.headers[h.REPUBLISHED] = b"t\1"
        case "counted":
            draft.headers |= {h.DISPATCH: b"I\0\0\0\1", h.ATTEMPTS: b"I\0\0\0\1"}
        case "same id":
            draft = _draft(some_uuid(Random(f"id {number // 40}")), agent_type, number)
        case "same key":
            draft.fields |= {"idempotency_key": f'"k{number // 40}"', "user_id": '"u"', "not_before": soon}
    return draft


def _draft(task_id: UUID, agent_type: str, number: int) -> Draft:
    draft = Draft({"version": "1", "task_id": f'"{task_id}"', "agent_type": f'"{agent_type}"',
                   "payload": str(number), "user_id": f'"user-{number % 50}"'})  # fmt: skip
    draft.properties |= {"delivery_mode": b"\2", "priority": b"\4", "message_id": amqp.short(str(task_id))}
    return draft


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    if len(path) > 1 and path[0] == "commit":
        path = ["commit", "buckets", "0.01"]
    for name in path[:-1]:
        if not isinstance(into.get(name), dict):
            into[name] = {}
        into = into[name]
        if name == "tally":
            into.setdefault("started_at", json.dumps(utc_now().isoformat()))
    into[path[-1]] = value


def _written(tree: Any) -> Any:
    """A tree of JSON texts as one."""
    if not isinstance(tree, dict):
        return tree if isinstance(tree, str | bytes) else json.dumps(tree)
    return json_object({name: _written(value) for name, value in tree.items()})
