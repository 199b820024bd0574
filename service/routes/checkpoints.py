"""Checkpoints: what training has left, by jobs of this service or by runs from a console."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from core.errors import CheckpointCorrupt, StorageError
from core.events import finite
from jobs import catalog
from jobs.catalog import Order
from jobs.lineage import trace
from service.deps import After, Checkpoints, InTurn, Ledger, Limit, Owner
from service.lineage import CheckpointDetail, LinkOut
from service.schemas import CheckpointOut, Page

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
def get_checkpoint(ref: str, shelf: Checkpoints, ledger: Ledger, owner: Owner) -> CheckpointDetail:
    """One checkpoint (id, name, `latest` or `<job>:best`), what its folder says of it, and its lineage."""
    row = shelf.find(owner, ref)
    try:
        manifest = finite(shelf.manifest(row).model_dump())
    except (CheckpointCorrupt, StorageError):
        manifest = None
    with ledger.read() as session:
        lineage = [LinkOut.of(link) for link in trace(session, row)]
    return CheckpointDetail(**CheckpointOut.of(row).model_dump(), manifest=manifest, lineage=lineage)


@router.post("/checkpoints/{ref}/pin", dependencies=[InTurn])
def pin_checkpoint(ref: str, shelf: Checkpoints, owner: Owner) -> CheckpointOut:
    """Let a checkpoint (id or name) stay, whatever comes after it. Pinning it again changes nothing."""
    return CheckpointOut.of(shelf.set_pinned(owner, ref, True))


@router.delete("/checkpoints/{ref}/pin", dependencies=[InTurn])
def unpin_checkpoint(ref: str, shelf: Checkpoints, owner: Owner) -> CheckpointOut:
    """Let a pinned checkpoint go when newer ones of its run supersede it; nothing is removed at once."""
    return CheckpointOut.of(shelf.set_pinned(owner, ref, False))


@router.delete("/checkpoints/{ref}", status_code=204, dependencies=[InTurn])
def delete_checkpoint(ref: str, shelf: Checkpoints, owner: Owner) -> None:
    """Remove a checkpoint (id or name) for good. Whoever asks for it later is told so: 410.

    One that is pinned, that a job is about to start from, or that an unfinished job would go on from, stays: 409.
    """
    shelf.remove(owner, ref)
