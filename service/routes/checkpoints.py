"""Checkpoints: what training has left, by jobs of this service or by runs from a console."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from core.errors import CheckpointCorrupt
from core.events import finite
from jobs import catalog
from jobs.catalog import Order
from service.deps import After, Checkpoints, Ledger, Limit, Owner
from service.schemas import CheckpointDetail, CheckpointOut, Page

router = APIRouter(tags=["checkpoints"])


@router.get("/checkpoints")
def list_checkpoints(
    shelf: Checkpoints,
    ledger: Ledger,
    owner: Owner,
    limit: Limit = 20,
    after: After = None,
    job: Annotated[str | None, Query(description="Id of the job that made them.")] = None,
    source: str | None = None,
    model: Annotated[str | None, Query(description="A `model_type`.")] = None,
    order: Annotated[Order, Query(description="`best` puts the lowest validation loss first.")] = "newest",
) -> Page[CheckpointOut]:
    """Checkpoints, newest or best first."""
    shelf.adopt_strays(owner)
    with ledger.read() as session:
        rows, has_more = catalog.list_checkpoints(
            session, owner, limit, after, job_id=job, source=source, model=model, order=order
        )
    return Page(data=[CheckpointOut.of(row) for row in rows], has_more=has_more)


@router.get("/checkpoints/{ref}")
def get_checkpoint(ref: str, shelf: Checkpoints, owner: Owner) -> CheckpointDetail:
    """One checkpoint (id, name or `latest`), and what its folder says of it."""
    row = shelf.find(owner, ref)
    try:
        manifest = finite(shelf.manifest(row).model_dump())
    except CheckpointCorrupt:
        manifest = None
    return CheckpointDetail(**CheckpointOut.of(row).model_dump(), manifest=manifest)
