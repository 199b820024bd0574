"""Where transactions begin and end, and the only place that knows when the database is out of order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, col, select

from jobs import sqlite
from jobs.errors import LedgerNewer, LedgerUnavailable
from jobs.migrations import REVISION
from jobs.migrations.upgrade import upgrade
from jobs.tables import Worker

BUSY_SECONDS = 5.0


class Database:
    """The ledger's database, for all threads of one process.

    Opening it touches no file; `migrate()` makes the file and its tables. Rows that a transaction returned stay
    readable after it.

    Args:
        url: `sqlite:///relative/path.db` or `sqlite:////absolute/path.db`.
        busy_seconds: How long a transaction waits for its turn.

    Raises:
        ConfigError: the URL names no SQLite file.
    """

    def __init__(self, url: str, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = sqlite.path_of(url)
        self.writer = sqlite.open_writer(self.path, busy_seconds)
        self.reader = sqlite.open_reader(self.path, busy_seconds)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that may write, alone; it commits, or leaves nothing behind if anything is raised.

        Keep it short, and never open one inside another: the inner one would wait for the outer.

        Raises:
            LedgerUnavailable: the database is locked, full, damaged or out of reach.
        """
        with _outages_told(), Session(self.writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that sees a single state of the ledger; writing in it is an error.

        Raises:
            LedgerUnavailable: the database is damaged or out of reach.
        """
        with _outages_told(), Session(self.reader, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create the tables, or bring those of an earlier release up to date after a backup beside the database.

        Safe to call from several processes at once: one does the work and the others wait for it.

        Raises:
            LedgerNewer: a later release made this database.
            LedgerUnavailable: it cannot be opened or written.
        """
        with _outages_told():
            try:
                upgrade(self.writer, self.path)
            except OSError as error:
                raise LedgerUnavailable(f"The ledger cannot be set up at {self.path}: {error.strerror}.") from error

    def check_revision(self, session: Session) -> None:
        """Return if this process's code fits the tables; they may have changed since it started.

        Raises:
            LedgerNewer: a later release has migrated them.
        """
        revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        if revision != REVISION:
            raise LedgerNewer(
                f"The ledger is at revision {revision} now, and this process knows {REVISION}; restart it with the "
                "release that migrated the ledger."
            )

    def ping(self) -> None:
        """Return if the ledger can be read and has its tables, or raise LedgerUnavailable."""
        with self.read() as session:
            session.exec(select(col(Worker.id)).limit(1)).first()

    def close(self) -> None:
        """Give all connections back."""
        self.writer.dispose()
        self.reader.dispose()


@contextmanager
def _outages_told() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise LedgerUnavailable("The ledger is busy; nothing was changed, try again in a moment.") from error
    except (DatabaseError, sqlite3.Error) as error:
        sentence = sqlite.outage(error.orig if isinstance(error, DatabaseError) else error)
        if sentence is None:
            raise
        raise LedgerUnavailable(sentence) from error
