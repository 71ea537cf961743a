"""Keys, sessions, the audit log, and the indexes for quotas, fair shares and lists of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

WAITS = "due_at IS NOT NULL"
PARTIAL = (
    ("tasks_due", ["due_at", "leased_until", "priority", "user_id", "agent_type", "task_id"], WAITS),
    ("tasks_unfinished", ["user_id"], "finished_at IS NULL"),
    ("tasks_of_user", ["user_id", "updated_at"], "created_at IS NOT NULL"),
)


def _create(name: str, columns: list[str], only: str) -> None:
    op.create_index(name, "tasks", columns, sqlite_where=sa.text(only), postgresql_where=sa.text(only))


def upgrade() -> None:
    """Add the tables and indexes."""
    op.drop_index("tasks_due", "tasks")
    op.drop_index("tasks_by_end", "tasks")
    op.create_index("tasks_by_change", "tasks", ["updated_at"])
    for name, columns, only in PARTIAL:
        _create(name, columns, only)
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(12), primary_key=True),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "sessions",
        sa.Column("secret_hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("kind", sa.String(7), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("audit_id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor_key_id", sa.String(12)),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("details", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop them. Keys and the audit log are lost."""
    for table in ("audit", "sessions", "keys"):
        op.drop_table(table)
    for name, *_ in PARTIAL:
        op.drop_index(name, "tasks")
    op.drop_index("tasks_by_change", "tasks")
    op.create_index("tasks_by_end", "tasks", ["finished_at"])
    _create("tasks_due", ["due_at"], WAITS)
