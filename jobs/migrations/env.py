"""What Alembic runs for each command; the connection, with its transaction, comes from `upgrade`."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import jobs.tables  # noqa: F401  # Fills the metadata.

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    if context.get_context().dialect.name == "postgresql":
        # A large table takes as long as it takes.
        context.execute("SET LOCAL statement_timeout = 0")
        context.execute("SET LOCAL lock_timeout = 0")
    context.run_migrations()
