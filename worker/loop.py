"""Claim → run → finish, beside a beat and a scan: the whole life of a worker."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from sqlmodel import col, select

from core.failpoints import failpoint
from jobs import queue, workers
from jobs.database import Database
from jobs.errors import LedgerNewer, LedgerUnavailable
from jobs.lease import LeaseScanner
from jobs.tables import Job, Worker
from jobs.thinning import thin
from worker.gpus import Gpu, find_gpus
from worker.inference_process import InferenceProcess
from worker.settings import WorkerSettings
from worker.slots import Slot, all_vacant, make_slots
from worker.spare import Spare
from worker.stop import StopSign
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

SETTLED_SECONDS = 10.0
"""A job that has run for this long has begun, and the next child may take a core for its imports."""

THIN_SECONDS = 3600.0

FAREWELL_SECONDS = 2.5
"""After its child is gone, a job that cannot be given back in this time is left for others to find."""


class WorkerLoop:
    """One worker.

    Args:
        settings: Times and places.
        stop: Set it to drain: the running jobs are saved and given back, then `run` returns.
        gpus: Those to train on; by default all that this process may see.
    """

    def __init__(self, settings: WorkerSettings, stop: StopSign, gpus: Sequence[Gpu] | None = None) -> None:
        self.settings = settings
        self.stop = stop
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.db = Database(settings.database_url)
        self.scanner = LeaseScanner(
            settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_failures_in_a_row=settings.max_failures_in_a_row,
        )
        self.spare = Spare(settings.warm_child)
        self.slots = make_slots(settings.capacity, find_gpus() if gpus is None else gpus)
        self.inference = InferenceProcess(settings) if settings.inference else None
        self._beaten = self._scanned = self._thin_at = self._claimed = -float("inf")
        self._woken = threading.Event()

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            LedgerNewer: a later release made the ledger, or has migrated it in the meantime; what ran was saved first.
        """
        try:
            self.begin()
            while not self.stop.is_set():
                self.fill()
                self.housekeeping()
                self._woken.wait(self.settings.claim_seconds)
                self._woken.clear()
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
                time.sleep(1)

    def fill(self) -> None:
        """Take jobs for the places that have none.

        Raises:
            LedgerNewer: see `run`.
        """
        try:
            for slot in self.slots:
                if slot.job is not None or self.stop.is_set():
                    continue
                if not self.anything_due():
                    return
                job = self.claim(slot)
                if job is not None:
                    self._claimed = time.monotonic()
                    failpoint("worker.claimed")
                    self.attend(slot, job)
        except LedgerNewer:
            raise
        except LedgerUnavailable as error:
            log.warning("cannot claim: %s", error.message)

    def anything_due(self) -> bool:
        """Whether a job waits in line."""
        with self.db.read() as session:
            return queue.anything_due(session, time.time())

    def claim(self, slot: Slot) -> Job | None:
        """The next job, now held by this worker, for this place; None if another one has the place's GPU, too."""
        if self.is_in_use(slot.device):
            slot.refuse("a job of another worker trains on it")
            return None
        if not slot.reserve():
            return None
        job = None
        try:
            with self.db.write() as session:
                self.db.check_revision(session)
                job = queue.claim(session, self.id, time.time(), device=slot.device)
            return job
        finally:
            if job is None:
                slot.vacate()

    def is_in_use(self, device: str | None) -> bool:
        """Whether the ledger knows of a job that trains on this device."""
        if device is None:
            return False
        with self.db.read() as session:
            return session.exec(select(Job.id).where(col(Job.device) == device)).first() is not None

    def attend(self, slot: Slot, job: Job) -> None:
        """Have the job taken care of in its place."""
        supervisor = Supervisor(
            self.db, job, self.settings, self.stop.is_set, self.spare.take, visible_devices=slot.visible_devices
        )
        slot.begin(job, supervisor.attend, self._woken.set)

    def housekeeping(self) -> None:
        """Keep a child waiting; beat, scan for lost jobs, wake waiting ones: each when it is due."""
        now = time.monotonic()
        if self.job_id is None or now - self._claimed > SETTLED_SECONDS:
            self.spare.prepare()
        try:
            if now - self._beaten >= self.settings.heartbeat_seconds:
                self._beaten = now
                self.beat()
            if now - self._scanned >= self.settings.scan_seconds:
                self._scanned = now
                self.scan()
            if self.settings.thin_events_days and now >= self._thin_at:
                self.thin(now)
        except LedgerUnavailable as error:
            log.warning("housekeeping has to wait: %s", error.message)

    @property
    def job_id(self) -> str | None:
        """One of the jobs at hand, if there is any."""
        return next((job.id for slot in self.slots if (job := slot.job)), None)

    def beat(self) -> None:
        """Show that this worker is alive; generation that died is started again, at a new address."""
        leaving = self.stop.is_set()
        moved = not leaving and self.inference is not None and self.inference.revive()
        with self.db.write() as session:
            known = workers.beat_worker(session, self.id, job_id=self.job_id, draining=leaving)
        if moved or not known:
            self.register()

    def scan(self) -> None:
        """Take back jobs whose holders fell silent, and put those that waited long enough back in line."""
        with self.db.write() as session:
            lost = self.scanner.scan(session)
            queue.wake_due(session, time.time())
        for job in lost:
            log.warning("job %s was lost by its worker and is %s now", job.id, job.state)

    def thin(self, now: float) -> None:
        """Take from the logs of old runs what nobody will miss: a few runs at each look, until none is left."""
        with self.db.write() as session:
            thinned = thin(session, time.time() - self.settings.thin_events_days * 86_400)
        if not thinned:
            self._thin_at = now + THIN_SECONDS

    def register(self) -> None:
        """Put this worker on the list."""
        row = Worker(
            id=self.id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            devices=[_processor(), *(f"cuda: {slot.gpu.name}" for slot in self.slots if slot.gpu)],
            memory_bytes=_memory_bytes(),
            inference_url=self.inference.url if self.inference else None,
            inference_token=self.inference.token if self.inference else None,
            capacity=len(self.slots),
            started_at=time.time(),
            seen_at=time.time(),
        )
        with self.db.write() as session:
            workers.register_worker(session, row)

    def leave(self) -> None:
        """Let the running jobs be saved and given back, end what this worker started, and take it off the list."""
        self.stop.set()
        deadline = time.monotonic() + self.settings.drain_seconds + FAREWELL_SECONDS
        self.spare.close()
        if self.job_id is not None:
            with suppress(LedgerUnavailable):
                self.beat()
        if self.inference:
            self.inference.close()
        if not all_vacant(self.slots, deadline):
            log.warning("left before all jobs were given back; others will find them")
            return
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


def _processor() -> str:
    """What a person calls this machine's processor."""
    return f"cpu: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
