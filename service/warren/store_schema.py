"""The tables of the store. What changes here needs a migration in `migrations/versions`.

Times are seconds since the epoch (UTC), as floats: SQLite has no type for them. JSON is kept as the bytes
that it came in.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text, Uuid

metadata = MetaData()

RUNNING: Final = "running"
"""Somebody runs it, or ran it and died."""
RELEASED: Final = "released"
"""Given back to its queue; whoever gets it next is no suspect."""
SUCCEEDED: Final = "succeeded"
DEAD: Final = "dead"
CANCELLED: Final = "cancelled"
FINAL: Final = (SUCCEEDED, DEAD, CANCELLED)

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    # The replay that this is the life of (UUIDv7: later lives sort later), or nothing.
    Column("life", String(36), nullable=False),
    Column("agent_type", String(63), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("status", String(10), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("worker_id", String(128)),
    Column("result", LargeBinary),
    Column("checkpoint", LargeBinary),
    Column("reason", String(16)),
    Column("error_type", String(255)),
    Column("error_message", Text),
    Column("traceback", Text),
    Column("fingerprint", String(16)),
    Column("first_failed_at", Float),
    Column("last_failed_at", Float),
    Column("finished_at", Float),
    Column("updated_at", Float, nullable=False),
)
Index("tasks_by_status", tasks.c.status, tasks.c.finished_at)

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("life", String(36), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("failed_at", Float, nullable=False),
    Column("error_type", String(255), nullable=False),
    Column("error_message", Text, nullable=False),
    Column("worker_id", String(128), nullable=False),
)

steps = Table(
    "steps",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("worker_id", String(128), nullable=False),
    Column("at", Float, nullable=False),
)
