"""The ledger and durable steps."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.Uuid, primary_key=True),
        sa.Column("life", sa.String(36), nullable=False),
        sa.Column("agent_type", sa.String(63), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker_id", sa.String(128)),
        sa.Column("result", sa.LargeBinary),
        sa.Column("checkpoint", sa.LargeBinary),
        sa.Column("reason", sa.String(16)),
        sa.Column("error_type", sa.String(255)),
        sa.Column("error_message", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("fingerprint", sa.String(16)),
        sa.Column("first_failed_at", sa.Float),
        sa.Column("last_failed_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("tasks_by_status", "tasks", ["status", "finished_at"])
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.Uuid, primary_key=True),
        sa.Column("life", sa.String(36), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("failed_at", sa.Float, nullable=False),
        sa.Column("error_type", sa.String(255), nullable=False),
        sa.Column("error_message", sa.Text, nullable=False),
        sa.Column("worker_id", sa.String(128), nullable=False),
    )
    op.create_table(
        "steps",
        sa.Column("task_id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("steps")
    op.drop_table("attempts")
    op.drop_table("tasks")
