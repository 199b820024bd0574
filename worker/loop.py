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

from core.checkpointing import CheckpointStore
from core.machine.failpoints import failpoint
from jobs import lease, queue, workers
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerNewer, LedgerUnavailable
from jobs.lease import LeaseScanner
from jobs.tables import Job, State, Worker
from jobs.thinning import thin
from worker.gpus import Gpu, find_gpus
from worker.inference_process import InferenceProcess
from worker.removal import sweep
from worker.settings import WorkerSettings
from worker.slots import Slot, all_vacant, make_slots
from worker.spare import Spare
from worker.stop import StopSign
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

SETTLED_SECONDS = 10.0
"""A job that has run for this long has begun, and the next child may take a core for its imports."""

THIN_SECONDS = 3600.0

SWEEP_SECONDS = 300.0

LOOK_SECONDS = 0.5
"""A worker that seldom looks for jobs still obeys, and beats, at once."""

AGAIN_SECONDS = 1.0
"""Before the next claim, when this machine could not take care of the last one's job."""

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
        self.store = CheckpointStore(settings.checkpoints)
        self.spare = Spare(settings.warm_child)
        self.slots = make_slots(settings.capacity, find_gpus() if gpus is None else gpus)
        self.inference = InferenceProcess(settings) if settings.inference else None
        self._put_back: set[str] = set()
        self._beaten = self._scanned = self._thin_at = self._swept = self._claimed = -float("inf")
        self._filled = self._claim_after = -float("inf")
        self._woken = threading.Event()
        self._strayed = threading.Event()

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            LedgerNewer: a later release made the ledger, or has migrated it in the meantime; what ran was saved first.
        """
        try:
            self.begin()
            while not self.stop.is_set():
                self.fill_if_due()
                self.housekeeping()
                self._woken.wait(min(self.settings.claim_seconds, LOOK_SECONDS))
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

    def fill_if_due(self) -> None:
        """Look for jobs now and then, and at once when a place has become free.

        Raises:
            LedgerNewer: see `run`.
        """
        if self._woken.is_set() or time.monotonic() - self._filled >= self.settings.claim_seconds:
            self._woken.clear()
            self._filled = time.monotonic()
            self.fill()

    def fill(self) -> None:
        """Take jobs for the places that have none.

        Raises:
            LedgerNewer: see `run`.
        """
        try:
            self.give_strays_back()
            for slot in self.slots:
                if slot.job is not None or self.stop.is_set() or time.monotonic() < self._claim_after:
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
        if not slot.reserve():
            return None
        job = None
        try:
            with self.db.write() as session:
                self.db.check_revision(session)
                job = queue.claim(session, self.id, time.time(), device=slot.device)
                if job is None and queue.anything_due(session, time.time()):
                    slot.refuse("a job of another worker trains on it")
            return job
        except LedgerNewer:
            raise
        except LedgerUnavailable:
            # The commit may have been done, and then this worker holds a job that it does not know of.
            job = None
            self._strayed.set()
            raise
        finally:
            if job is None:
                slot.vacate()

    def give_strays_back(self) -> None:
        """Give back, uncharged, what the ledger says that this worker holds and nobody here takes care of."""
        if not self._strayed.is_set():
            return
        # Before the look: a place may lose another one meanwhile.
        self._strayed.clear()
        attended = [job.id for slot in self.slots if (job := slot.job)]
        held = (col(Job.worker_id) == self.id, col(Job.state) == State.STARTING)
        strays = select(Job).where(*held, col(Job.id).not_in(attended))
        try:
            with self.db.write() as session:
                for job in session.exec(strays).all():
                    log.warning("job %s was claimed and never begun; it is given back", job.id)
                    with suppress(LeaseLost):  # Somebody's scan was faster.
                        lease.release(session, job.id, job.fence)
        except LedgerUnavailable:
            self._strayed.set()
            raise

    def attend(self, slot: Slot, job: Job) -> None:
        """Have the job taken care of in its place."""
        supervisor = Supervisor(
            self.db, job, self.settings, self.stop.is_set, self.spare.take, visible_devices=slot.visible_devices
        )

        def freed() -> None:
            if supervisor.never_began:
                self._strayed.set()
            self._woken.set()

        try:
            slot.begin(job, supervisor.attend, freed)
        except RuntimeError as error:  # What Python makes of a kernel that gives no further thread.
            log.warning("job %s cannot be taken care of now: %s", job.id, error)
            slot.vacate()
            self._claim_after = time.monotonic() + AGAIN_SECONDS
            self._strayed.set()
            self.give_strays_back()

    def housekeeping(self) -> None:
        """Keep a child waiting; beat, scan for lost jobs, wake waiting ones, tidy up: each when it is due."""
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
            if now - self._swept >= SWEEP_SECONDS:
                self._swept = now
                self.sweep()
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
        # Before anything else, so that a ledger that cannot do it is not asked at every look.
        self._thin_at = now + THIN_SECONDS
        with self.db.write() as session:
            if thin(session, time.time() - self.settings.thin_events_days * 86_400):
                self._thin_at = now

    def sweep(self) -> None:
        """Remove what killed processes left of checkpoints that are gone; a disk that refuses is asked again later."""
        try:
            put_back = sweep(self.db, self.store)
        except OSError as error:
            log.warning("checkpoints that are gone stay on the disk for now: %s", error)
            return
        for name in sorted(put_back - self._put_back):
            log.warning("checkpoint %s was removed, and its folder is there again; it is left alone", name)
        self._put_back = put_back

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
            self.give_strays_back()
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
