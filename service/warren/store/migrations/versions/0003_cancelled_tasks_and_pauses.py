"""An index of cancelled tasks, and the agent types that are paused."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

CANCELLED = "status = 'cancelled'"


def upgrade() -> None:
    """Add the index and the table of pauses."""
    only = sa.text(CANCELLED)
    op.create_index("tasks_cancelled", "tasks", ["finished_at"], sqlite_where=only, postgresql_where=only)
    op.create_table(
        "pauses",
        sa.Column("agent_type", sa.String(63), primary_key=True),
        sa.Column("paused_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("pauses")
    op.drop_index("tasks_cancelled", "tasks")
