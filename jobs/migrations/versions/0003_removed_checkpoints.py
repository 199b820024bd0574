"""Checkpoints that are gone and remembered, and the runs that they belong to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEPT = sa.text("removed_at IS NULL")
LEAVING = sa.text("removed_at IS NOT NULL AND discarded_at IS NULL")


def upgrade() -> None:
    op.add_column("checkpoint", sa.Column("run", sa.String()))
    op.execute("UPDATE checkpoint SET run = job_id")
    op.add_column("checkpoint", sa.Column("removed_at", sa.Float()))
    op.add_column("checkpoint", sa.Column("removed_because", sa.String(16)))
    op.add_column("checkpoint", sa.Column("discarded_at", sa.Float()))
    op.drop_index("ix_checkpoint_job", "checkpoint")
    op.create_index("ix_checkpoint_job", "checkpoint", ["job_id", "removed_at", "step"])
    op.drop_index("ix_checkpoint_newest", "checkpoint")
    op.create_index(
        "ix_checkpoint_newest", "checkpoint", ["owner", "created_at", "id"], sqlite_where=KEPT, postgresql_where=KEPT
    )
    op.create_index("ix_checkpoint_run", "checkpoint", ["run", "step"])
    op.create_index("ix_checkpoint_leaving", "checkpoint", ["name"], sqlite_where=LEAVING, postgresql_where=LEAVING)


def downgrade() -> None:
    # The earlier release would take what is only remembered for what is there.
    op.execute("DELETE FROM checkpoint WHERE removed_at IS NOT NULL")
    op.drop_index("ix_checkpoint_leaving", "checkpoint")
    op.drop_index("ix_checkpoint_run", "checkpoint")
    op.drop_index("ix_checkpoint_newest", "checkpoint")
    op.create_index("ix_checkpoint_newest", "checkpoint", ["owner", "created_at", "id"])
    op.drop_index("ix_checkpoint_job", "checkpoint")
    op.create_index("ix_checkpoint_job", "checkpoint", ["job_id", "step"])
    for column in ("discarded_at", "removed_because", "removed_at", "run"):
        op.drop_column("checkpoint", column)
