"""Bring a database to the newest revision, once, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, inspect

from core.machine.failpoints import failpoint
from jobs.errors import LedgerNewer

if TYPE_CHECKING:
    from jobs.database import Dialect

_HERE = Path(__file__).parent


def upgrade(engine: Engine, dialect: Dialect) -> None:
    """Apply all revisions that the ledger lacks in one transaction, after a backup if there is anything to lose.

    Killed at any point, it leaves the ledger as it was, and can be run again.

    Raises:
        LedgerNewer: its revision is unknown to this release.
    """
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with dialect.migrating(engine):
        is_empty, revision = _look(engine)
        if _is_newest(revision, scripts):
            return
        if not is_empty:
            dialect.back_up(str(scripts.get_current_head()))
            failpoint("migration.backed_up")
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            failpoint("migration.committing")


def _look(engine: Engine) -> tuple[bool, str | None]:
    with engine.connect() as connection:
        return not inspect(connection).get_table_names(), MigrationContext.configure(connection).get_current_revision()


def _is_newest(revision: str | None, scripts: ScriptDirectory) -> bool:
    if revision is None:
        return False
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise LedgerNewer(
            f"The ledger is at revision {revision}, which a later release made; install that release or a newer one."
        ) from None
    return revision == scripts.get_current_head()
