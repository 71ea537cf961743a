"""The catalogue: every field, property, header, column and parameter, with every extreme for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tests.fuzz import amqp, rows
from tests.fuzz.shapes import VICTIMS, Change
from tests.fuzz.values import SHORT_STRINGS, TEXTS, Told, field_values, json_values, times, utc_now
from warren_schemas import headers as h

ROW_COURSES: Final = 3  # a row takes its course with one of several messages, so each comes more than once
TASK_FIELDS: Final = (
    "version",
    "task_id",
    "agent_type",
    "payload",
    "user_id",
    "priority",
    "created_at",
    "expires_at",
    "not_before",
    "timeout_s",
    "idempotency_key",
    "replay_of",
    "metadata",
    "unheard_of",
)
HEADERS: Final = (
    h.ATTEMPTS,
    h.REPUBLISHED,
    h.REPLAY,
    h.DISPATCH,
    h.REASON,
    h.ERROR_TYPE,
    h.ERROR_MESSAGE,
    h.TRACEBACK,
    h.FIRST_FAILED_AT,
    h.LAST_FAILED_AT,
    h.WORKER,
    h.FINGERPRINT,
    h.TRACEPARENT,
    h.TRACESTATE,
    "x-death",
    h.FIRST_DEATH_REASON,
    "x-first-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
    "x-delay",
    "CC",
    "BCC",
    "x-opt-deliver-by",
    "own",
    "",
    "n" * 255,
    "\xff-not-utf-8",
    "nul\0",
)
SHORT_PROPERTIES: Final = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
EVENT_FIELDS: Final = (
    "version", "event_id", "at", "kind", "subject", "state", "previous", "reason", "worker_id", "details",
)  # fmt: skip
DETAILS: Final = (
    "interval_s",
    "prefetch",
    "running",
    "running.echo",
    "waiting",
    "waiting.echo",
    "awaiting_agent.echo",
    "breakers",
    "breakers.echo",
    "paused",
    "agents",
    "agents.echo",
    "agents.echo.idle",
    "totals",
    "totals.succeeded",
    "tally",
    "tally.started_at",
    "tally.agent_types",
    "tally.agent_types.echo.totals.succeeded",
    "tally.reconnects.x",
    "tally.agent_types.echo.run.buckets",
    "tally.agent_types.echo.run.buckets.1",
    "tally.agent_types.echo.run.sum_s",
    "tally.agent_types.echo.wait",
    "tally.commit.buckets.0.01",
    "store_is_up",
    "loop_lag_s",
    "memory_bytes",
)
COMMAND_FIELDS: Final = ("version", "action", "task_id", "agent_type")
RESULT_FIELDS: Final = ("version", "task_id", "status", "result", "error", "attempts")
# (method, path, parameters of the query, fields of the body), with `*` where the path has an extreme.
ROUTES: Final[tuple[tuple[str, str, tuple[str, ...], Mapping[str, Any]], ...]] = (
    ("POST", "/tasks", (), {"agent_type": "echo", "payload": 1, "user_id": "u", "priority": "medium",
                            "delay_s": 0, "not_before": None, "expires_at": None, "timeout_s": None,
                            "idempotency_key": None, "metadata": {}}),
    ("GET", "/tasks", ("user_id", "agent_type", "status", "limit", "cursor"), {}),
    ("GET", "/tasks/*", (), {}),
    ("DELETE", "/tasks/*", (), {}),
    ("GET", "/dead-letters", ("agent_type", "reason", "group", "error_type", "user_id", "since", "before",
                              "limit", "cursor", "text", "contains"), {}),
    ("GET", "/dead-letters/groups", ("since", "before", "limit", "reason"), {}),
    ("POST", "/dead-letters/replay", (), {"wanted": {"user_id": "nobody-at-all"}, "limit": 3, "all": False,
                                          "canary": 0, "rate": 50, "edit": None, "from_scratch": False,
                                          "keep_going": False, "timeout_s": 5}),
    ("POST", "/dead-letters/discard", (), {"wanted": {"user_id": "nobody-at-all"}, "limit": 3, "all": False}),
    ("GET", "/dead-letters/replays/*", (), {}),
    ("POST", "/dead-letters/replays/*/resume", (), {}),
    ("POST", "/schedules", (), {"name": "often", "agent_type": "echo", "cron": "0 0 1 1 *", "payload": None,
                                "user_id": "u", "priority": "medium"}),
    ("DELETE", "/schedules/*", (), {}),
    ("POST", "/keys", (), {"user_id": "u", "role": "tenant", "expires_at": None}),
    ("DELETE", "/keys/*", (), {}),
    ("POST", "/agents/*/resume", (), {}),
    ("GET", "/audit", ("limit", "before"), {}),
    ("GET", "/agents/queue/status", ("x",), {}),
    ("POST", "/session", (), {"token": "wl_x", "key": "wk_x"}),
)  # fmt: skip
REQUEST_HEADERS: Final = ("authorization", "cookie", "traceparent", "tracestate", "content-type", "host",
                          "x-forwarded-for", "accept", "content-encoding", "last-event-id")  # fmt: skip


def catalogue(*, is_sqlite: bool) -> list[Change]:
    """Every place with every extreme for it."""
    values, fields = [*json_values(), *times(utc_now())], field_values()
    return [
        *(change for kind in ("task", "letter", "ageing") for change in _of_tasks(kind, values, fields)),
        *_of_agents(values),
        *_of_other_messages(values, fields),
        *_of_requests(values),
        *_of_rows(is_sqlite=is_sqlite),
    ]


def _each(kind: str, place: str, extremes: Iterable[Told]) -> Iterator[Change]:
    return (Change(kind, place, told, value) for told, value in extremes)


def _of_tasks(kind: str, values: Sequence[Told], fields: Sequence[Told]) -> Iterator[Change]:
    """A task's body, properties and headers, on one of the three ways that it can come."""
    for name in TASK_FIELDS:
        yield from _each(kind, f"body.{name}", [*values, ("missing", None), ("twice", "1, 1")])
    yield from _each(kind, "body", [*values, ("2 MB", b"x" * 2_000_000)])
    for name in SHORT_PROPERTIES:
        yield from _each(kind, f"property.{name}", [(told, amqp.short(raw)) for told, raw in SHORT_STRINGS])
    ours = ("{dead}", "{ageing}", "{echo}", "{replies}")
    yield from _each(kind, "property.reply_to", [(told, told) for told in ours])
    for name, octets in (("priority", (0, 1, 9, 10, 127, 128, 255)), ("delivery_mode", (0, 1, 3, 255))):
        yield from _each(kind, f"property.{name}", [(str(one), bytes([one])) for one in octets])
    stamps = [(told, value[1:]) for told, value in fields if told.startswith("T ")]
    yield from _each(kind, "property.timestamp", stamps)
    for name in HEADERS:
        yield from _each(kind, f"header.{name:.20}", [(told, (name, raw)) for told, raw in fields])


def _of_agents(values: Sequence[Told]) -> Iterator[Change]:
    for agent_type in VICTIMS:
        yield from _each("agent", agent_type, values)


def _of_other_messages(values: Sequence[Told], fields: Sequence[Told]) -> Iterator[Change]:
    """Commands, events and results."""
    for kind, names in (("control", COMMAND_FIELDS), ("event", EVENT_FIELDS), ("reply", RESULT_FIELDS)):
        for name in names:
            yield from _each(kind, f"body.{name}", [*values, ("missing", None)])
        yield from _each(kind, "body", values)
        for name in ("message_id", "correlation_id", "content_type"):
            yield from _each(
                kind, f"property.{name}", [(told, amqp.short(raw)) for told, raw in SHORT_STRINGS]
            )
        yield from _each(kind, "header.own", [(told, ("own", raw)) for told, raw in fields])
    for name in DETAILS:
        yield from _each("event", f"details.{name}", values)


def _of_requests(values: Sequence[Told]) -> Iterator[Change]:
    texts = [(told, text) for told, text in TEXTS if told != "100 kB"]
    numbers = [(f"number {text:.12}", text) for text in ("-1", "0", "1e9", "inf", "nan", "9" * 30)]
    asked = [*texts, *numbers, *((told, json.loads(text)) for told, text in times(utc_now()))]
    for place, (_, path, query, body) in enumerate(ROUTES):
        for name in query:
            yield from _each("http", f"{place}.query.{name}", asked)
        for name in body:
            yield from _each("http", f"{place}.body.{name}", [*values, ("missing", None)])
        if body:
            yield from _each("http", f"{place}.body", values)
        if "*" in path:
            yield from _each("http", f"{place}.path", asked)
    for name in REQUEST_HEADERS:
        yield from _each("http", f"1.header.{name}", [*asked, ("not UTF-8", b"Andr\xe9")])


def _of_rows(*, is_sqlite: bool) -> Iterator[Change]:
    for column in rows.columns() * ROW_COURSES:
        place = f"{column.table.name}.{column.name}"
        yield from _each("row", place, rows.extremes(column, is_sqlite=is_sqlite))
