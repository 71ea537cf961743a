"""Requests to the gateway, and rows with the messages that meet them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz import amqp, rows
from tests.fuzz.amqp import Publish
from tests.fuzz.catalogue import ROUTES
from tests.fuzz.messages import Changes, Made
from tests.fuzz.rows import Row
from tests.fuzz.shapes import API, Deed, Request, World
from tests.fuzz.values import json_object, raw_of, some_uuid
from warren_schemas import headers as h


class Knock:
    """A request before it is sent."""

    def __init__(self, number: int, place: str, random: Random) -> None:
        self.method, self.path, _, ordinary = ROUTES[int(place.partition(".")[0])]
        self._fields: dict[str, Any] = {
            name: json.dumps(value) for name, value in ordinary.items() if value is not None
        }
        if self.path == "/schedules" and ordinary:
            self._fields["name"] = f'"http-{number}"'
        self._body: bytes | None = None
        self._query: list[str] = []
        self._headers: dict[str, bytes] = {}
        self._segment = str(some_uuid(random))

    def change(self, place: str, value: Any) -> None:
        """Put an extreme in its place."""
        _, area, *name = place.split(".")
        match area, name:
            case "body", []:
                self._body = raw_of(value)
            case "body", [one] if value is None:
                self._fields.pop(one, None)
            case "body", [one]:
                self._fields[one] = value
            case "query", [one]:
                self._query.append(f"{one}={_quoted(value)}")
            case "header", [one]:
                self._headers[one] = _header_value(value)
            case "path", _:
                self._segment = _quoted(value)

    def request(self) -> Request:
        """The request."""
        body = json_object(self._fields) if self._body is None and self._fields else self._body
        target = f"{API}{self.path.replace('*', self._segment)}"
        target += f"?{'&'.join(self._query)}" if self._query else ""
        return Request(self.method, target[:8000], body, self._headers)


def http(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A request."""
    knock = Knock(number, changes[0].place, random)
    for one in changes:
        knock.change(one.place, one.value)
    return f"{knock.method} {knock.path}", (knock.request(),)


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode()[:2000]) if not text.isalnum() else text[:2000]


def _header_value(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return raw.translate(None, b"\r\n\0")[:8000]


def row(number: int, changes: Changes, world: World, random: Random) -> Made:
    """A row; of a task also what meets it: its message, its letter, a command, a look."""
    table = changes[0].place.partition(".")[0]
    values = rows.ordinary(table, number, random)
    values |= {one.place.partition(".")[2]: one.value for one in changes}
    written = Row(table, values)
    if table not in ("tasks", "steps", "attempts"):
        return table, (written,)
    course = random.choice(("alone", "alone", "run", "letter", "cancel", "cancel by http"))
    course = "run" if table == "steps" else course
    agent_type = "remember" if table == "steps" else random.choice(("echo", "fail", "remember"))
    look = Request("GET", f"{API}/tasks/{values['task_id']}")
    met = _met(course, str(values["task_id"]), agent_type, world)
    return f"{table} {values.get('status', '')} {course}", (written, *met, look)


def _met(course: str, task_id: str, agent_type: str, world: World) -> tuple[Deed, ...]:
    fields = {"version": "1", "task_id": f'"{task_id}"', "agent_type": f'"{agent_type}"', "payload": "1",
              "user_id": '"u"'}  # fmt: skip
    properties = {
        "delivery_mode": b"\2",
        "message_id": amqp.short(task_id),
        "reply_to": amqp.short(world.replies),
    }
    carried = {h.REPUBLISHED: b"t\1", h.DISPATCH: b"I\0\0\0\1"}
    died = {h.REASON: amqp.long("exhausted"), h.ATTEMPTS: b"I\0\0\0\2"}
    command = {"version": "1", "action": '"cancel"', "task_id": f'"{task_id}"'}
    body = json_object(fields)
    match course:
        case "run":
            headers = properties | {"headers": amqp.table(carried.items())}
            return (Publish(world.names.tasks, agent_type, body, headers),)
        case "letter":
            headers = properties | {"headers": amqp.table(died.items())}
            return (Publish("", world.names.dead, body, headers),)
        case "cancel":
            return (Publish(world.names.control, "", json_object(command)),)
        case "cancel by http":
            return (Request("DELETE", f"{API}/tasks/{task_id}"),)
    return ()
