"""Probes: whether this process lives, and whether it can do its work."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from jobs.database import Database
from jobs.errors import LedgerUnavailable
from jobs.tables import Worker
from jobs.workers import forget_worker, list_workers, register_worker
from service.deps import Streams
from service.schemas import is_alive

router = APIRouter(tags=["health"])

PROOF_SECONDS = 30.0
REFUSAL_SECONDS = 1.0


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Alive):
    """The ledger answers too."""

    worker: bool = Field(description="Whether a worker was heard of in the last 30 seconds; jobs wait for one.")


class Readiness:
    """Whether the ledger can be read and takes writes; the second is asked of it by writing, but seldom.

    Reading tells nothing of a full disk, a file system that became read-only or a lock that someone holds on to. A
    write that is rolled back tells nothing either, because it never reaches the disk. So a row goes in and out again in
    one transaction, which waits for its turn like any other: a ledger that is busy for a moment is still ready. Such a
    proof holds for a while, unless a request meets an outage before; a refusal holds for a second, however many probes
    come.

    Args:
        ledger: The one that is asked.
    """

    def __init__(self, ledger: Database) -> None:
        self._ledger = ledger
        # A thread of its own: requests that wait for the ledger must not keep the probes waiting too.
        self._asking = anyio.CapacityLimiter(1)
        self._proven_until = self._refused_until = 0.0
        self._refusal = ""

    def doubt(self) -> None:
        """The ledger was found out of order: no proof holds any longer."""
        self._proven_until = 0.0

    async def check(self) -> bool:
        """Return whether a worker is there too.

        Raises:
            LedgerUnavailable: it is not ready.
        """
        return await anyio.to_thread.run_sync(self._check, limiter=self._asking)

    def _check(self) -> bool:
        if time.monotonic() < self._refused_until:
            raise LedgerUnavailable(self._refusal)
        try:
            self._prove()
            with self._ledger.read() as session:
                return any(is_alive(worker) for worker in list_workers(session))
        except LedgerUnavailable as refusal:
            self._refusal, self._refused_until = refusal.message, time.monotonic() + REFUSAL_SECONDS
            raise

    def _prove(self) -> None:
        if time.monotonic() < self._proven_until:
            return
        with self._ledger.write() as session:
            self._ledger.check_revision(session)
            nobody = Worker(id="nobody", hostname="", pid=0, version="", started_at=0, seen_at=0)
            register_worker(session, nobody)
            forget_worker(session, nobody.id)
        self._proven_until = time.monotonic() + PROOF_SECONDS


async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> Alive:
    """Always ok while the process answers at all."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(readiness: Annotated[Readiness, Depends(_readiness)], tails: Streams) -> Ready:
    """Whether jobs can be taken in: 503 if the ledger is out of order, or this process is about to end."""
    if tails.closing:
        raise LedgerUnavailable("The service is stopping.")
    return Ready(worker=await readiness.check())
