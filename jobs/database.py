"""Where transactions begin and end, and the only place that knows when the database is out of order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, col, select

from core.errors import ConfigError
from jobs.errors import LedgerNewer, LedgerUnavailable, TextUnfit
from jobs.migrations import REVISION
from jobs.migrations.upgrade import upgrade
from jobs.postgres import PostgreSQL
from jobs.sqlite import SQLite
from jobs.tables import Worker

BUSY_SECONDS = 5.0


class Dialect(Protocol):
    """What one kind of database does in its own way; see `jobs.sqlite` and `jobs.postgres`."""

    @property
    def place(self) -> str: ...
    def open_writer(self, busy_seconds: float) -> Engine: ...
    def open_reader(self, busy_seconds: float) -> Engine: ...
    def outage(self, error: BaseException | None) -> str | None: ...
    def unfit(self, error: BaseException | None) -> bool: ...
    def migrating(self, engine: Engine) -> AbstractContextManager[None]: ...
    def back_up(self, revision: str) -> None: ...


class Database:
    """The ledger's database, for all threads of one process.

    Opening it touches no file; `migrate()` makes the file and its tables. Rows that a transaction returned stay
    readable after it.

    Args:
        url: `sqlite:///relative/path.db`, `sqlite:////absolute/path.db` or `postgresql://user:password@host/database`.
        busy_seconds: How long a transaction waits for its turn.

    Raises:
        ConfigError: the URL names neither.
    """

    def __init__(self, url: str, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.url = url
        self.dialect = _dialect_of(url)
        self.writer = self.dialect.open_writer(busy_seconds)
        self.reader = self.dialect.open_reader(busy_seconds)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that may write; it commits, or leaves nothing behind if anything is raised.

        Keep it short, and never open one inside another: the inner one would wait for the outer.

        Raises:
            LedgerUnavailable: the database is locked, full, damaged or out of reach. If that happens while it commits,
                it may have been done or not.
        """
        with self._outages_told(), Session(self.writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that sees a single state of the ledger; writing in it is an error.

        Raises:
            LedgerUnavailable: the database is damaged or out of reach.
        """
        with self._outages_told(), Session(self.reader, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Create the tables, or bring those of an earlier release up to date after a backup beside the database.

        Safe to call from several processes at once: one does the work and the others wait for it.

        Raises:
            LedgerNewer: a later release made this database.
            LedgerUnavailable: it cannot be opened or written.
        """
        with self._outages_told():
            try:
                upgrade(self.writer, self.dialect)
            except OSError as error:
                place = self.dialect.place
                raise LedgerUnavailable(f"The ledger cannot be set up at {place}: {error.strerror}.") from error

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
    def _outages_told(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise LedgerUnavailable("The ledger is busy; nothing was changed, try again in a moment.") from error
        except UnicodeEncodeError as error:
            raise TextUnfit from error
        except (DatabaseError, InterfaceError, sqlite3.Error) as error:
            if self.dialect.unfit(getattr(error, "orig", None)):
                raise TextUnfit from error
            sentence = self.dialect.outage(error if isinstance(error, sqlite3.Error) else error.orig)
            if sentence is None:
                raise
            raise LedgerUnavailable(sentence) from error


def _dialect_of(url: str) -> Dialect:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError([("database_url", "must look like sqlite:///path/to/ratchet.db")]) from None
    match parsed.get_backend_name():
        case "sqlite":
            return SQLite(parsed)
        case "postgresql":
            return PostgreSQL(parsed)
        case other:
            raise ConfigError([("database_url", f"is for {other}; the ledger can be in SQLite or PostgreSQL")])
