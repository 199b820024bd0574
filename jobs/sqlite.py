"""All that the ledger knows of SQLite in particular; `jobs.postgres` is its sibling.

Two engines, so that no read can turn into a write: the writer opens each transaction with BEGIN IMMEDIATE, which takes
the write lock before anything was read; the reader's connections refuse to write. A deferred transaction that reads and
then writes could fail halfway with SQLITE_BUSY, whatever the timeout.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, String, case, cast, create_engine, event, exists, func
from sqlalchemy.pool import QueuePool

from core.errors import ConfigError
from core.events import to_json

_PRAGMAS = ("foreign_keys = ON", "synchronous = FULL", "journal_mode = WAL")
_MAX_READERS = 16
_PRIVATE = 0o600  # The ledger knows tokens and everyone's metadata; its journal files take over the mode.

_OUTAGES = {
    sqlite3.SQLITE_BUSY: "The ledger is busy with another writer; nothing was changed, try again in a moment.",
    sqlite3.SQLITE_LOCKED: "The ledger is busy with another writer; nothing was changed, try again in a moment.",
    sqlite3.SQLITE_FULL: "The disk that holds the ledger is full; free some space and try again.",
    sqlite3.SQLITE_READONLY: "The ledger cannot be written; check the permissions of its file and folder.",
    sqlite3.SQLITE_CANTOPEN: "The ledger's file cannot be opened; check that it exists and may be written.",
    sqlite3.SQLITE_IOERR: "The disk that holds the ledger reports an error; check it, then try again.",
    sqlite3.SQLITE_PROTOCOL: "The ledger is busy being opened by others; try again in a moment.",
    sqlite3.SQLITE_CORRUPT: "The ledger's file is damaged; restore it from a backup.",
    sqlite3.SQLITE_NOTADB: "The ledger's file is not a SQLite database; check the database URL.",
}


class SQLite:
    """A ledger in one file.

    Args:
        url: Names the file.

    Raises:
        ConfigError: it does not.
    """

    def __init__(self, url: URL) -> None:
        if url.database in {None, "", ":memory:"}:
            raise ConfigError([("database_url", "must name a SQLite file, like sqlite:///path/to/ratchet.db")])
        self.path = Path(str(url.database))

    @property
    def place(self) -> str:
        """Where the ledger is, for a person."""
        return str(self.path)

    def open_writer(self, busy_seconds: float) -> Engine:
        """Connections whose transactions hold the write lock from their start.

        There is one: SQLite has one writer at a time, and threads that queue for a connection wait less than threads
        that poll for a lock.
        """
        return _open(self.path, "BEGIN IMMEDIATE", busy_seconds, 1, "query_only = OFF")

    def open_reader(self, busy_seconds: float) -> Engine:
        """Connections whose transactions see one state of the database and cannot change it."""
        return _open(self.path, "BEGIN", busy_seconds, _MAX_READERS, "query_only = ON")

    def outage(self, error: BaseException | None) -> str | None:
        """What to tell a person if this is the database out of order, None if it is a mistake of ours."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return None
        if code == sqlite3.SQLITE_ERROR and "no such table" in str(error):
            return "The ledger has no tables yet; it has to be migrated first."
        return _OUTAGES.get(code & 0xFF)  # The low byte is the kind of error, the rest is detail.

    def unfit(self, error: BaseException | None) -> bool:
        """Whether the database refused a text for a character in it; it takes any that can be encoded."""
        return False

    @contextmanager
    def migrating(self, _engine: Engine) -> Iterator[None]:
        """Make the file if need be, and keep other processes from migrating it; they wait here as long as it takes.

        The lock file stays: if it were removed, a waiting process would hold a lock on a file that no other can find.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.path.touch(mode=_PRIVATE)
            yield

    def back_up(self, revision: str) -> None:
        """Copy the database as it is before `revision`; a copy under its final name is complete."""
        final = self.path.with_name(f"{self.path.name}.before-{revision}.bak")
        partial = final.with_name(f"{final.name}.part")
        partial.unlink(missing_ok=True)
        partial.touch(mode=_PRIVATE)
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(partial)) as target:
            source.backup(target)
        partial.replace(final)


def json_has(column: Any, key: str, value: str) -> ColumnElement[bool]:
    """Whether a JSON object has this value, as text, under this key; any key will do, a JSON path has no quotes."""
    entry = func.json_each(column).table_valued("key", "atom", "type")
    text = case((entry.c.type.in_(("true", "false")), entry.c.type), else_=cast(entry.c.atom, String))
    return exists().where(entry.c.key == key, text == value)


def _open(path: Path, begin: str, busy_seconds: float, num_connections: int, mode: str) -> Engine:
    # An address with mode=rw: a mistyped path is an error, never a new and empty ledger.
    address = f"{path.absolute().as_uri()}?mode=rw"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(address, uri=True, timeout=busy_seconds, check_same_thread=False),
        poolclass=QueuePool,
        pool_size=num_connections,
        max_overflow=0,
        pool_timeout=busy_seconds,
        json_serializer=to_json,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver would open transactions by its own rules; with None it leaves them to the listener below.
        connection.isolation_level = None
        for pragma in (*_PRAGMAS, mode):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_explicitly(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
