"""Who works on what."""

from __future__ import annotations

from fastapi import APIRouter

from jobs.workers import list_workers as all_workers
from service.deps import Ledger
from service.schemas import Page, WorkerOut

router = APIRouter(tags=["workers"])


@router.get("/workers")
def list_workers(ledger: Ledger) -> Page[WorkerOut]:
    """The worker processes that are, or were a moment ago, at work; the longest at work first."""
    with ledger.read() as session:
        return Page(data=[WorkerOut.of(worker) for worker in all_workers(session)])
