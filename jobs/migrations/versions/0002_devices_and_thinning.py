"""Devices with one job each, places in line that can be changed, thinned logs, workers with room for several jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WHOLE = sa.text("thinned_seq < last_seq AND finished_at IS NOT NULL")
ROOM = 1 << 20


def upgrade() -> None:
    op.add_column("job", sa.Column("place", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(f"UPDATE job SET place = seq * {ROOM}")
    op.drop_index("ix_job_claim", "job")
    op.create_index("ix_job_claim", "job", ["state", sa.text("priority DESC"), "place", "run_after"])
    op.add_column("job", sa.Column("device", sa.String()))
    op.add_column("job", sa.Column("thinned_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("worker", sa.Column("capacity", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_job_device", "job", ["device"], unique=True)
    op.create_index("ix_job_whole", "job", ["finished_at"], sqlite_where=WHOLE, postgresql_where=WHOLE)


def downgrade() -> None:
    op.drop_index("ix_job_whole", "job")
    op.drop_index("ix_job_device", "job")
    op.drop_index("ix_job_claim", "job")
    op.create_index("ix_job_claim", "job", ["state", sa.text("priority DESC"), "seq"])
    op.drop_column("worker", "capacity")
    op.drop_column("job", "thinned_seq")
    op.drop_column("job", "device")
    op.drop_column("job", "place")
