"""A PostgreSQL server for tests: on a loopback port of its own, gone when they are done."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # The server's own promise to survive a power cut is not what is tested here.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
}


class PostgresServer:
    """A cluster in a folder of its own, outside of pytest's, which nobody else may enter."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ratchet-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._num_databases = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        if os.geteuid() == 0:
            # The server refuses to run as root; its package brings a user to run it as.
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "--auth=trust", "--no-sync", "--username=ratchet", "--encoding=UTF8", "--locale=C")
        self.start()

    @staticmethod
    def programs() -> Path | None:
        """The folder of its newest installed programs, if there are any."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
        on_path = shutil.which("postgres")
        return found[-1].parent if found else Path(on_path).parent if on_path else None

    def start(self) -> None:
        """Come up, and be ready."""
        told = " ".join(f"-c {name}={value}" for name, value in {**SETTINGS, "port": self.port}.items())
        self._run("pg_ctl", "--wait", f"--log={self._log}", f"--options={told}", "start")

    def stop(self, mode: str = "fast") -> None:
        """Go down: `fast` breaks off what runs, `immediate` crashes."""
        self._run("pg_ctl", "--wait", f"--mode={mode}", "stop")

    def close(self) -> None:
        """Go down for good."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def make_database(self, template: str = "template0") -> str:
        """The URL of a new database."""
        self._num_databases += 1
        name = f"ledger_{self._num_databases}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")  # type: ignore[arg-type]
        return self._url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")  # type: ignore[arg-type]

    def _url(self, database: str) -> str:
        return f"postgresql://ratchet@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        folder = self.programs()
        assert folder is not None
        user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        said = subprocess.run(
            [str(folder / program), f"--pgdata={self._data}", *arguments],
            user=user.pw_uid if os.geteuid() == 0 else None,
            group=user.pw_gid if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            text=True,
            check=False,
        )
        if said.returncode:
            log = self._log.read_text()[-2000:] if self._log.exists() else ""
            raise RuntimeError(f"{program} ended with {said.returncode}: {said.stderr}{log}")
