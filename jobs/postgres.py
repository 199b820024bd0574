"""All that the ledger knows of PostgreSQL in particular; `jobs.sqlite` is its sibling.

Writers run side by side under READ COMMITTED: a verb decides by the row that it locks or updates, and those that look
before they add take turns (`jobs.turns`). Readers see one state, and their connections refuse to write.

Not here, on purpose: a backup before a migration. A server has its own (`pg_dump`), which its operator knows best.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, ColumnElement, Engine, create_engine, text

from core.errors import ConfigError
from core.events import to_json

_MAX_WRITERS = 8
_MAX_READERS = 16
_MIGRATION_LOCK = 7_242_538

_UNSURE = "if a request was under way, ask what became of it, or repeat it under the same Idempotency-Key"

_OUTAGES = {
    "08": f"The connection to the ledger's database was lost; {_UNSURE}.",
    "25006": "The ledger's database takes no writes just now (it is read-only); try again in a moment.",
    "25P03": f"The ledger's database gave up waiting for this process; {_UNSURE}.",
    "28": "The ledger's database refuses the user or the password of the database URL.",
    "3D": "The ledger's database does not exist; create it, or check the database URL.",
    "40": "The ledger is busy with other writers; nothing was changed, try again in a moment.",
    "42501": "The user of the database URL may not do this in the ledger's database; grant it the rights.",
    "42P01": "The ledger has no tables yet; it has to be migrated first.",
    "53100": "The disk that holds the ledger is full; free some space and try again.",
    "53": "The ledger's database has no room for another connection; try again in a moment.",
    "55P03": "The ledger is busy with another writer; nothing was changed, try again in a moment.",
    "57014": "The ledger's database took too long; nothing was changed, try again in a moment.",
    "57": f"The ledger's database is stopping or starting; {_UNSURE}.",
    "58": "The disk that holds the ledger reports an error; check it, then try again.",
    "XX001": "The ledger's database is damaged; restore it from a backup.",
    "XX002": "The ledger's database is damaged; restore it from a backup.",
}
"""By SQLSTATE, or the class that its first two characters name; the longer one counts."""

_REFUSALS = {"does not exist": "3D", "authentication failed": "28", "too many clients": "53"}


class PostgreSQL:
    """A ledger in a database of a server.

    Args:
        url: `postgresql://user:password@host/database`.

    Raises:
        ConfigError: the URL names no database, or the driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        if not url.database:
            raise ConfigError([("database_url", "must name a database, like postgresql://user@host/ratchet")])
        try:
            import psycopg  # noqa: F401  # Only to say how to install it.
        except ImportError:
            raise ConfigError(
                [("database_url", "needs the PostgreSQL driver: pip install 'ratchet[postgres]'")]
            ) from None
        self._url = url.set(drivername="postgresql+psycopg")

    @property
    def place(self) -> str:
        """Where the ledger is, for a person; never with the password."""
        return f"database {self._url.database} on {self._url.host or 'this machine'}"

    def open_writer(self, busy_seconds: float) -> Engine:
        """Connections whose transactions may write."""
        return self._open(busy_seconds, _MAX_WRITERS, isolation_level="READ COMMITTED")

    def open_reader(self, busy_seconds: float) -> Engine:
        """Connections whose transactions see one state of the database and cannot change it."""
        return self._open(busy_seconds, _MAX_READERS, isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def outage(self, error: BaseException | None) -> str | None:
        """What to tell a person if this is the database out of order, None if it is a mistake of ours."""
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        state = error.sqlstate
        if state is None:  # A connection was refused or lost; the driver then knows the server's words at most.
            is_outage = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            refusal = next((told for words, told in _REFUSALS.items() if words in str(error)), "08")
            return _OUTAGES[refusal] if is_outage else None
        return _OUTAGES.get(state) or _OUTAGES.get(state[:2])

    def unfit(self, error: BaseException | None) -> bool:
        """Whether the database refused a text for a character in it, as it does with NUL."""
        return getattr(error, "sqlstate", None) in {"22021", "22P05"} or "NUL (0x00)" in str(error)

    @contextmanager
    def migrating(self, engine: Engine) -> Iterator[None]:
        """Keep other processes from migrating; they wait here as long as it takes."""
        with engine.connect() as connection:
            for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            yield
            connection.rollback()

    def back_up(self, revision: str) -> None:
        """The server's own business, see the module."""

    def _open(self, busy_seconds: float, num_connections: int, **options: Any) -> Engine:
        wait_ms = int(busy_seconds * 1000)
        return create_engine(
            self._url,
            pool_size=num_connections,
            max_overflow=0,
            pool_timeout=busy_seconds,
            # A connection that the server closed meanwhile is found out before it is used, not by using it.
            pool_pre_ping=True,
            json_serializer=to_json,
            execution_options=options,
            connect_args={
                "connect_timeout": max(1, round(busy_seconds)),
                "tcp_user_timeout": 2 * wait_ms,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "options": " ".join(f"-c {name}={value}" for name, value in _server_limits(wait_ms).items()),
                "application_name": "ratchet",
            },
        )


def _server_limits(wait_ms: int) -> dict[str, int]:
    """What the server is told, so that a client that it can no longer reach does not keep a row locked for long."""
    return {
        "lock_timeout": wait_ms,
        "statement_timeout": 2 * wait_ms,
        "idle_in_transaction_session_timeout": 2 * wait_ms,
        "tcp_user_timeout": 2 * wait_ms,
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
    }


def json_has(column: Any, key: str, value: str) -> ColumnElement[bool]:
    """Whether a JSON object has this value, as text, under this key."""
    matches: ColumnElement[bool] = column.op("->>")(key) == value
    return matches
