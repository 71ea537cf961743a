"""Tables of the store. A change here needs a migration in `migrations/versions`.

Times are seconds since the epoch (UTC), as floats: SQLite has no type for times. JSON is kept as the bytes
that were received.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeVar, cast

from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Uuid,
)

from warren.store.columns import LARGEST, AnyWords, Count, Instant, Words, fitting

T = TypeVar("T", bound=str)

metadata = MetaData()

SCHEDULED: Final = "scheduled"
"""The row is the task: the relay publishes it when it is due."""
PUBLISHED: Final = "published"
"""The relay has published the task, and no worker has begun to run it."""
RUNNING: Final = "running"
"""A worker runs the task, or died while it ran."""
RELEASED: Final = "released"
"""The task was given back to its queue. Its next delivery does not count as a crash."""
SUCCEEDED: Final = "succeeded"
DEAD: Final = "dead"
CANCELLED: Final = "cancelled"
DISCARDED: Final = "discarded"
"""The task is dead, and an operator decided not to replay it."""
FINAL: Final = (SUCCEEDED, DEAD, CANCELLED, DISCARDED)

__all__ = [
    "CANCELLED", "DEAD", "DISCARDED", "FINAL", "LARGEST", "PUBLISHED", "RELEASED", "RUNNING", "SCHEDULED",
    "SUCCEEDED", "attempts", "audit", "fitting", "keys", "metadata", "pauses", "replays", "schedules",
    "sessions", "steps", "tasks",
]  # fmt: skip

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    # The life: the id of the replay that began it (UUIDv7: later lives sort later), or empty.
    Column("life", Words(36), nullable=False),
    Column("agent_type", Words(63), nullable=False),
    Column("user_id", Words(255), nullable=False),
    Column("status", Words(10), nullable=False),
    Column("fence", Count, nullable=False),
    Column("crashes", Count, nullable=False),
    Column("attempts", Count, nullable=False),
    Column("worker_id", Words(128)),
    Column("result", LargeBinary),
    Column("checkpoint", LargeBinary),
    Column("reason", Words(16)),
    Column("error_type", Words(255)),
    Column("error_message", AnyWords()),
    Column("traceback", AnyWords()),
    Column("fingerprint", Words(16)),
    Column("first_failed_at", Instant),
    Column("last_failed_at", Instant),
    Column("finished_at", Instant),
    Column("updated_at", Instant, nullable=False),
    # The content needed to publish the task: kept while it waits in the store, and when it is dead.
    Column("created_at", Instant),
    Column("due_at", Instant),
    Column("leased_until", Instant),
    # Counts publications by the relay. A message with a smaller number is stale.
    Column("dispatch", Count, nullable=False, server_default="0"),
    Column("body", LargeBinary),
    Column("headers", LargeBinary),
    Column("priority", Count),
    Column("reply_to", Words(255)),
    Column("correlation_id", Words(255)),
    Column("idempotency_key", Words(255)),
    # The fingerprint of a replayed task's last failure before the replay.
    Column("former_fingerprint", Words(16)),
)
# The only index that every end of a task updates. It serves lists of tasks and pruning.
Index("tasks_by_change", tasks.c.updated_at)


def _partial(
    name: str, *columns: ColumnElement[object], only: ColumnElement[bool], unique: bool = False
) -> None:
    """A partial index: the ends of tasks, thousands a second, should not have to update it."""
    Index(name, *columns, unique=unique, sqlite_where=only, postgresql_where=only)


# A covering index of the columns that decide the order. Bodies can be large, and are read only when claimed.
_partial(
    "tasks_due",
    tasks.c.due_at,
    tasks.c.leased_until,
    tasks.c.priority,
    tasks.c.user_id,
    tasks.c.agent_type,
    tasks.c.task_id,
    only=tasks.c.due_at.is_not(None),
)
# The rows that count for a user's quota.
_partial("tasks_unfinished", tasks.c.user_id, only=tasks.c.finished_at.is_(None))
# Tasks that entered through the store. The ends of other tasks do not update it.
_partial("tasks_of_user", tasks.c.user_id, tasks.c.updated_at, only=tasks.c.created_at.is_not(None))
_partial("tasks_dead", tasks.c.finished_at, only=tasks.c.status == DEAD)
_partial(
    "tasks_dead_by_kind",
    tasks.c.fingerprint,
    tasks.c.agent_type,
    tasks.c.finished_at,
    only=tasks.c.status == DEAD,
)
_partial("tasks_cancelled", tasks.c.finished_at, only=tasks.c.status == CANCELLED)
_partial("tasks_replayed", tasks.c.life, tasks.c.status, only=tasks.c.life != "")
_partial(
    "tasks_by_key",
    tasks.c.user_id,
    tasks.c.idempotency_key,
    only=tasks.c.idempotency_key.is_not(None),
    unique=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("life", Words(36), primary_key=True),
    Column("number", Count, primary_key=True),
    Column("failed_at", Instant, nullable=False),
    Column("error_type", Words(255), nullable=False),
    Column("error_message", AnyWords(), nullable=False),
    Column("worker_id", Words(128), nullable=False),
)

steps = Table(
    "steps",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("name", Words(255), primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("worker_id", Words(128), nullable=False),
    Column("at", Instant, nullable=False),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Words(63), primary_key=True),
    Column("agent_type", Words(63), nullable=False),
    Column("cron", Words(255), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("user_id", Words(255), nullable=False),
    Column("priority", Words(6), nullable=False),
    # "agent" for `every=`, "person" for `warren schedule add`.
    Column("made_by", Words(6), nullable=False),
    Column("next_at", Instant, nullable=False),
    Column("last_at", Instant),
)

replays = Table(
    "replays",
    metadata,
    # The life of the tasks that it replays (UUIDv7).
    Column("replay_id", Words(36), primary_key=True),
    # JSON: the plan, see `replay_plan`.
    Column("plan", LargeBinary, nullable=False),
    Column("status", Words(10), nullable=False),
    Column("reason", AnyWords()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("agent_type", Words(63), primary_key=True),
    Column("paused_at", Instant, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", Words(12), primary_key=True),
    Column("user_id", Words(255), nullable=False),
    Column("role", Words(8), nullable=False),
    # SHA-256, in hexadecimal: the secret itself is random enough to need no salt.
    Column("secret_hash", Words(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

sessions = Table(
    "sessions",
    metadata,
    Column("secret_hash", Words(64), primary_key=True),
    Column("key_id", Words(12), nullable=False),
    # "session" of a browser, or "login" for a link that opens one.
    Column("kind", Words(7), nullable=False),
    Column("expires_at", Instant, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    # Empty for the command line.
    Column("actor_key_id", Words(12)),
    Column("user_id", Words(255), nullable=False),
    Column("action", Words(64), nullable=False),
    Column("subject", Words(255), nullable=False),
    # JSON.
    Column("details", LargeBinary, nullable=False),
)


def one_of(value: str | None, words: Collection[T], otherwise: T) -> T:
    """A column's word, or `otherwise` if this version does not know the word."""
    return cast("T", value) if value in words else otherwise


def readable(raw: bytes | None) -> JsonValue:
    """The JSON in a column, for people to read.

    Invalid JSON, written by another version or a person, is shown as text: it must not make the other rows
    of a list unreadable.
    """
    if raw is None:
        return None
    try:
        value: JsonValue = from_json(raw, allow_inf_nan=False)
    except ValueError:
        return {"unreadable": raw.decode(errors="backslashreplace")}
    return value
