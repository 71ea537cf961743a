"""Rows of the store with one column, or several, at an extreme."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from sqlalchemy import Column, Float, Integer, LargeBinary, String, TypeDecorator, Uuid

from tests.fuzz.values import FLOATS, INT_32, INT_64, TEXTS, Told, nested, some_uuid
from warren.store.schema import metadata


@dataclass(frozen=True)
class Row:
    """A row to be inserted past everything of ours."""

    table: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class TextOfBytes:
    """Text that is not UTF-8: SQLite takes it, PostgreSQL never does."""

    raw: bytes


STATUSES: Final = (
    "scheduled",
    "published",
    "running",
    "released",
    "succeeded",
    "dead",
    "cancelled",
    "discarded",
)
# What belongs into a column of this name, or nearly.
DOMAINS: Final[Mapping[str, tuple[str, ...]]] = {
    "status": (*STATUSES, "paused", "stopped", "done", "Scheduled", "never"),
    "agent_type": ("echo", "fail", "nobody-runs-it", "Not-A-Type", "a.b", "#"),
    "priority": ("low", "urgent", "Urgent", "9"),
    "cron": (
        "* * * * *",
        "0 0 30 2 *",
        "R * * * *",
        "H H * * *",
        "*/0 * * * *",
        "@reboot",
        "* * * * * *",
        "a b",
    ),
    "made_by": ("agent", "person", "robot"),
    "role": ("tenant", "operator", "admin", "root"),
    "kind": ("session", "login", "cookie"),
    "reason": ("exhausted", "poison", "expired", "boredom"),
    "life": ("01932c07-4d10-7a52-9c3e-b1f0a8d47e66", "not-a-life"),
    "reply_to": ("nowhere", "amq.rabbitmq.reply-to", "amq.rabbitmq.reply-to.g1"),
    "correlation_id": ("mine",),
}
BYTES: Final[tuple[Told, ...]] = (
    ("empty", b""),
    ("no JSON", b"{"),
    ("not UTF-8", b"\xff\xfe"),
    ("null", b"null"),
    ("NaN", b"NaN"),
    ("1e999", b"1e999"),
    ("array", b"[]"),
    ("object", b'{"a": 1}'),
    ("text", b'"x"'),
    ("half a surrogate", b'"\\ud800"'),
    ("NUL", b'"\\u0000"'),
    ("400 digits", b"9" * 400),
    ("nested 190", nested(190).encode()),
    ("nested 5000", nested(5000).encode()),
    ("1 MB", b'"' + b"x" * 1_000_000 + b'"'),
    ("wide", json.dumps([[]] * 20_000).encode()),
    (
        "headers of all kinds",
        json.dumps({"a": None, "b": 1e308, "c": 2**64, "d": [{}], "": "", "x" * 300: 1}).encode(),
    ),
    (
        "our headers",
        json.dumps({"warren-attempts": "x", "warren-dispatch": 2**40, "warren-replay": 1}).encode(),
    ),
    ("headers over a frame", json.dumps({"a": "x" * 140_000}).encode()),
    ("many headers", json.dumps({f"k{number}": number for number in range(20_000)}).encode()),
)


def extremes(column: Column[Any], *, is_sqlite: bool) -> list[Told]:
    """The extremes of a column, by its type and its name."""
    found: list[Told] = []
    if column.nullable:
        found.append(("NULL", None))
    kept_as = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    match kept_as:
        case Integer():
            found += [(str(value), value) for value in (INT_64 if is_sqlite else INT_32)]
        case Float():
            found += [(str(value), value) for value in FLOATS]
        case LargeBinary():
            found += BYTES
        case Uuid():
            pass  # of any other kind no row can be found again
        case String():
            found += [(f"text {told}", text) for told, text in TEXTS]
            found += [(text, text) for text in DOMAINS.get(column.name, ())]
            if is_sqlite:
                found.append(("not UTF-8", TextOfBytes(b"Andr\xe9")))
        case other:
            raise TypeError(f"there are no extremes of {other!r} ({column}): say here which")
    return found


def columns() -> list[Column[Any]]:
    """Every column of every table."""
    return [column for table in metadata.tables.values() for column in table.columns]


def ordinary(table: str, number: int, random: Random) -> dict[str, Any]:
    """A row that Warren might have written itself."""
    now, key_id, secret_hash = time.time(), f"{number:012x}", f"{random.getrandbits(256):064x}"
    match table:
        case "tasks":
            return _task(random)
        case "attempts":
            return {"task_id": some_uuid(random), "life": "", "number": 1, "failed_at": now,
                    "error_type": "E",
                    "error_message": "m", "worker_id": "w"}  # fmt: skip
        case "steps":
            return {"task_id": some_uuid(random), "name": "1", "value": b"1", "worker_id": "w", "at": now}
        case "schedules":
            return {
                "name": f"s{number}",
                "agent_type": "echo",
                "cron": "* * * * *",
                "payload": b"null",
                "user_id": "u",
                "priority": "medium",
                "made_by": "person",
                "next_at": now + 1,
                "last_at": None,
            }
        case "replays":
            return {
                "replay_id": str(some_uuid(random)),
                "plan": b'{"filter": {}}',
                "reason": None,
                "created_at": now,
                "updated_at": now,
                "status": random.choice(("running", "paused", "done")),
            }
        case "pauses":
            return {"agent_type": f"pausable-{number}", "paused_at": now}
        case "keys":
            return {
                "key_id": key_id,
                "user_id": "u",
                "role": "tenant",
                "secret_hash": secret_hash,
                "created_at": now,
                "expires_at": None,
                "revoked_at": None,
            }
        case "sessions":
            return {"secret_hash": secret_hash, "key_id": key_id, "kind": "session", "expires_at": now + 60}
    assert table == "audit", f"no ordinary row of table {table}: say here what one is"
    return {
        "at": now,
        "actor_key_id": None,
        "user_id": "u",
        "action": "task.cancel",
        "subject": "x",
        "details": b"{}",
    }


def _task(random: Random) -> dict[str, Any]:
    now, task_id, status = time.time(), some_uuid(random), random.choice(STATUSES)
    agent_type = random.choice(("echo", "fail", "remember"))
    body = {"version": 1, "task_id": str(task_id), "agent_type": agent_type, "payload": 1}
    has_ended = status in ("succeeded", "dead", "cancelled", "discarded")
    return {
        "task_id": task_id,
        "life": "",
        "agent_type": agent_type,
        "user_id": "u",
        "status": status,
        "fence": 1,
        "crashes": 0,
        "attempts": 1,
        "worker_id": "w",
        "result": b"1" if status == "succeeded" else None,
        "checkpoint": None,
        "reason": "exhausted" if status == "dead" else None,
        "error_type": "E" if status == "dead" else None,
        "error_message": "m" if status == "dead" else None,
        "traceback": None,
        "fingerprint": "f" * 16 if status == "dead" else None,
        "first_failed_at": None,
        "last_failed_at": None,
        "finished_at": now if has_ended else None,
        "updated_at": now,
        "created_at": now,
        "due_at": now + random.choice((0, 0.5)) if status == "scheduled" else None,
        "leased_until": None,
        "dispatch": 1 if status == "published" else 0,
        "body": json.dumps(body).encode(),
        "headers": b"{}",
        "priority": 4,
        "reply_to": None,
        "correlation_id": None,
        "idempotency_key": None,
        "former_fingerprint": None,
    }
