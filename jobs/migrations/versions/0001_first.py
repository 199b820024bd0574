"""The first tables: job, event, checkpoint, worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATES = "'queued', 'starting', 'running', 'stopping', 'retry_wait', 'paused', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    _create_job()
    _create_event()
    _create_checkpoint()
    _create_worker()


def downgrade() -> None:
    for table in ("worker", "checkpoint", "event", "job"):
        op.drop_table(table)


def _create_job() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("model_type", sa.String(), nullable=False),
        sa.Column("parent_job", sa.String()),
        sa.Column("parent_checkpoint", sa.String()),
        sa.Column("resume_mode", sa.String()),
        sa.Column("diff", sa.JSON()),
        sa.Column("start_step", sa.Integer(), nullable=False),
        sa.Column("training_steps", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("train_loss", sa.Float()),
        sa.Column("val_loss", sa.Float()),
        sa.Column("tokens_per_second", sa.Float()),
        sa.Column("checkpoint", sa.String()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures_in_a_row", sa.Integer(), nullable=False),
        sa.Column("claimed_checkpoint", sa.String()),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String()),
        sa.Column("stop_requested", sa.String(16)),
        sa.Column("run_after", sa.Float()),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.JSON()),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float()),
        sa.Column("finished_at", sa.Float()),
        sa.Column("idempotency_key", sa.String()),
        sa.Column("request_hash", sa.String()),
        sa.Column("resume_key", sa.String()),
        sa.Column("resume_hash", sa.String()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_job_idempotency"),
        sa.UniqueConstraint("owner", "resume_key", name="uq_job_resume"),
        sa.CheckConstraint(f"state IN ({STATES})", name="ck_job_state"),
        sa.CheckConstraint("stop_requested IN ('cancel', 'pause')", name="ck_job_stop_requested"),
    )
    _index_job()


def _index_job() -> None:
    op.create_index("ix_job_claim", "job", ["state", sa.text("priority DESC"), "seq"])
    op.create_index("ix_job_newest", "job", ["owner", "created_at", "id"])
    op.create_index("ix_job_newest_by_state", "job", ["owner", "state", "created_at", "id"])
    op.create_index("ix_job_newest_by_source", "job", ["owner", "source", "created_at", "id"])
    op.create_index("ix_job_newest_by_model", "job", ["owner", "model_type", "created_at", "id"])
    op.create_index("ix_job_seq", "job", ["seq"], unique=True)


def _create_event() -> None:
    op.create_table(
        "event",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )


def _create_checkpoint() -> None:
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("job_id", sa.String()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String()),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("train_loss", sa.Float()),
        sa.Column("val_loss", sa.Float()),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="SET NULL"),
    )
    op.create_index("ix_checkpoint_job", "checkpoint", ["job_id", "step"])
    op.create_index("ix_checkpoint_newest", "checkpoint", ["owner", "created_at", "id"])


def _create_worker() -> None:
    op.create_table(
        "worker",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("inference_url", sa.String()),
        sa.Column("inference_token", sa.String()),
        sa.Column("job_id", sa.String()),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
