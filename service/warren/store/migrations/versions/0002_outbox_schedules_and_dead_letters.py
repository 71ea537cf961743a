"""The outbox, schedules, and the index of dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

DEAD = "status = 'dead'"
PARTIAL = (
    ("tasks_due", ["due_at"], "due_at IS NOT NULL", False),
    ("tasks_dead", ["finished_at"], DEAD, False),
    ("tasks_dead_by_kind", ["fingerprint", "agent_type", "finished_at"], DEAD, False),
    ("tasks_replayed", ["life", "status"], "life != ''", False),
    ("tasks_by_key", ["user_id", "idempotency_key"], "idempotency_key IS NOT NULL", True),
)


def _added() -> tuple["sa.Column[object]", ...]:
    return (
        sa.Column("created_at", sa.Float),
        sa.Column("due_at", sa.Float),
        sa.Column("leased_until", sa.Float),
        sa.Column("dispatch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("body", sa.LargeBinary),
        sa.Column("headers", sa.LargeBinary),
        sa.Column("priority", sa.Integer),
        sa.Column("reply_to", sa.String(255)),
        sa.Column("correlation_id", sa.String(255)),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("former_fingerprint", sa.String(16)),
    )


def upgrade() -> None:
    """Add the columns, tables and indexes."""
    for column in _added():
        op.add_column("tasks", column)
    op.drop_index("tasks_by_status", "tasks")
    op.create_index("tasks_by_end", "tasks", ["finished_at"])
    for name, columns, only, unique in PARTIAL:
        op.create_index(
            name, "tasks", columns, unique=unique, sqlite_where=sa.text(only), postgresql_where=sa.text(only)
        )
    op.create_table(
        "schedules",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("agent_type", sa.String(63), nullable=False),
        sa.Column("cron", sa.String(255), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("priority", sa.String(6), nullable=False),
        sa.Column("made_by", sa.String(6), nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sa.Column("last_at", sa.Float),
    )
    op.create_table(
        "replays",
        sa.Column("replay_id", sa.String(36), primary_key=True),
        sa.Column("plan", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop them. Dead letters and waiting tasks in the store are lost."""
    op.drop_table("replays")
    op.drop_table("schedules")
    for name, *_ in PARTIAL:
        op.drop_index(name, "tasks")
    op.drop_index("tasks_by_end", "tasks")
    op.create_index("tasks_by_status", "tasks", ["status", "finished_at"])
    for column in _added():
        op.drop_column("tasks", column.name)
