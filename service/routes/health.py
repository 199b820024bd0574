"""Probes: whether this process lives, and whether it can do its work."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from jobs.errors import LedgerUnavailable
from jobs.workers import list_workers
from service.deps import Ledger, Streams
from service.schemas import is_alive

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Alive):
    """The ledger answers too."""

    worker: bool = Field(description="Whether a worker was heard of in the last 30 seconds; jobs wait for one.")


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> Alive:
    """Always ok while the process answers at all."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
def readyz(ledger: Ledger, tails: Streams) -> Ready:
    """Whether jobs can be taken in: 503 if the ledger is out of order, or this process is about to end."""
    if tails.closing:
        raise LedgerUnavailable("The service is stopping.")
    ledger.ping()
    with ledger.read() as session:
        return Ready(worker=any(is_alive(worker) for worker in list_workers(session)))
