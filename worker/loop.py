"""Claim → run → finish, beside a beat and a scan: the whole life of a worker."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import socket
import threading
import time
from importlib.metadata import PackageNotFoundError, version

from jobs import queue, workers
from jobs.database import Database
from jobs.errors import LedgerNewer, LedgerUnavailable
from jobs.lease import LeaseScanner
from jobs.tables import Job, Worker
from worker.inference_process import InferenceProcess
from worker.settings import WorkerSettings
from worker.spare import Spare
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

SETTLED_SECONDS = 10.0
"""A job that has run for this long has begun, and the next child may take a core for its imports."""


class WorkerLoop:
    """One worker.

    Args:
        settings: Times and places.
        stop: Set it to drain: the running job is saved and given back, then `run` returns.
    """

    def __init__(self, settings: WorkerSettings, stop: threading.Event) -> None:
        self.settings = settings
        self.stop = stop
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.db = Database(settings.database_url)
        self.scanner = LeaseScanner(settings.lease_seconds, max_attempts=settings.max_attempts)
        self.spare = Spare(settings.warm_child)
        self.inference = InferenceProcess(settings) if settings.inference else None
        self.job: Job | None = None
        self._beaten = self._scanned = self._claimed = -float("inf")

    def run(self) -> None:
        """Work until told to stop."""
        self.begin()
        try:
            while not self.stop.is_set():
                self.job = self.claim()
                if self.job is None:
                    self.housekeeping()
                    self.stop.wait(self.settings.claim_seconds)
                    continue
                self._claimed = time.monotonic()
                draining = self.stop.is_set
                Supervisor(self.db, self.job, self.settings, draining, self.housekeeping, self.spare.take).attend()
        finally:
            self.leave()

    def begin(self) -> None:
        """Make the ledger ready and join it; a ledger that is busy is waited for.

        Raises:
            LedgerNewer: a later release made it.
        """
        while not self.stop.is_set():
            try:
                self.db.migrate()
                return self.register()
            except LedgerNewer:
                raise
            except LedgerUnavailable as error:
                log.warning("cannot begin: %s", error.message)
                self.stop.wait(1)

    def claim(self) -> Job | None:
        """The next job, now held by this worker."""
        try:
            with self.db.read() as session:
                if not queue.anything_due(session, time.time()):
                    return None
            with self.db.write() as session:
                return queue.claim(session, self.id, time.time())
        except LedgerUnavailable as error:
            log.warning("cannot claim: %s", error.message)
            return None

    def housekeeping(self) -> None:
        """Keep a child waiting; beat, scan for lost jobs, wake waiting ones: each when it is due."""
        now = time.monotonic()
        if self.job is None or now - self._claimed > SETTLED_SECONDS:
            self.spare.prepare()
        try:
            if now - self._beaten >= self.settings.heartbeat_seconds:
                self._beaten = now
                self.beat()
            if now - self._scanned >= self.settings.scan_seconds:
                self._scanned = now
                self.scan()
        except LedgerUnavailable as error:
            log.warning("housekeeping has to wait: %s", error.message)

    def beat(self) -> None:
        """Show that this worker is alive; generation that died is started again, at a new address."""
        moved = self.inference is not None and self.inference.revive()
        with self.db.write() as session:
            known = workers.beat_worker(
                session, self.id, job_id=self.job.id if self.job else None, draining=self.stop.is_set()
            )
        if moved or not known:
            self.register()

    def scan(self) -> None:
        """Take back jobs whose holders fell silent, and put those that waited long enough back in line."""
        with self.db.write() as session:
            lost = self.scanner.scan(session)
            queue.wake_due(session, time.time())
        for job in lost:
            log.warning("job %s was lost by its worker and is %s now", job.id, job.state)

    def register(self) -> None:
        """Put this worker on the list."""
        row = Worker(
            id=self.id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            devices=_devices(),
            memory_bytes=_memory_bytes(),
            inference_url=self.inference.url if self.inference else None,
            inference_token=self.inference.token if self.inference else None,
            started_at=time.time(),
            seen_at=time.time(),
        )
        with self.db.write() as session:
            workers.register_worker(session, row)

    def leave(self) -> None:
        """Take this worker off the list and end what it started."""
        self.spare.close()
        if self.inference:
            self.inference.close()
        try:
            with self.db.write() as session:
                workers.forget_worker(session, self.id)
        except LedgerUnavailable as error:
            log.warning("left without saying so: %s", error.message)
        self.db.close()


def _version() -> str:
    try:
        return version("ratchet")
    except PackageNotFoundError:
        return "unknown"


def _devices() -> list[str]:
    """What a person calls this machine's processor; the GPUs are known to the child that uses them."""
    return [f"cpu: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
