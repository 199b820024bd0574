"""Where checkpoints and runs come from: chains of parents, the youngest first.

A checkpoint's `parent` is the one that its run started from, so a chain has one link for each run, however often that
run was interrupted. Parents are told by manifests, which anyone who can write to the disk may have made: a chain is
followed for so many links and never in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import CTE, ColumnElement, and_, literal
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col, select

from jobs.tables import Checkpoint, Job

MAX_LINKS = 1000
"""Whoever wants to know more asks for the lineage of the last one."""

WARM_START = "warm_start"


@dataclass(frozen=True, slots=True)
class Link:
    """A checkpoint in a chain; `row` is None if the ledger knows only that another one names it.

    `mode` tells how its run went on from the next link: None for a fresh run, and if that job's row is gone.
    """

    id: str
    row: Checkpoint | None
    mode: str | None


@dataclass(frozen=True, slots=True)
class Missing:
    """What a run went on from and the ledger does not know: another program's run, or a job that was deleted.

    If the chain `is_cut`, the ledger may well know it, and nobody looked: see `MAX_LINKS`.
    """

    job: str | None
    checkpoint: str | None
    before_step: int
    """The chain begins here, in optimizer updates."""
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Descent:
    """Runs that went on from each other, the youngest first, and what came before them if that is not known."""

    runs: list[Job]
    missing: Missing | None


def trace(session: Session, checkpoint: Checkpoint) -> list[Link]:
    """The chain from a checkpoint, which comes first, to the first one of all, or to one that is not known."""
    owned = col(Checkpoint.owner) == checkpoint.owner
    chain = _chain(col(Checkpoint.id), col(Checkpoint.parent), checkpoint.id, owned)
    query = (
        select(chain.c.id, Checkpoint, Job.resume_mode)
        .select_from(chain)
        .outerjoin(Checkpoint, and_(col(Checkpoint.id) == chain.c.id, owned))
        .outerjoin(Job, col(Job.id) == col(Checkpoint.job_id))
        .order_by(chain.c.depth)
    )
    return list(_until_seen(Link(*row) for row in session.execute(query)))


def descend(session: Session, job: Job) -> Descent:
    """The runs whose steps count on to this job's.

    A warm start counts from 0 again, so the chain ends with it.
    """
    counts_on = and_(col(Job.owner) == job.owner, col(Job.resume_mode).is_distinct_from(WARM_START))
    chain = _chain(col(Job.id), col(Job.parent_job), job.id, counts_on)
    query = (
        select(Job).join(chain, and_(col(Job.id) == chain.c.id, col(Job.owner) == job.owner)).order_by(chain.c.depth)
    )
    runs = list(session.exec(query).all())
    first = runs[-1]
    if first.resume_mode == WARM_START or first.parent_checkpoint is None:
        return Descent(runs, None)
    is_cut = len(runs) >= MAX_LINKS and first.parent_job is not None
    return Descent(runs, Missing(first.parent_job, first.parent_checkpoint, first.start_step, is_cut))


def _chain(identity: Mapped[str], parent: Mapped[str | None], first: str, goes_on: ColumnElement[bool]) -> CTE:
    """Ids with their distance from the first, as far as the rows between them say where they come from."""
    chain = (
        select(identity.label("id"), literal(0).label("depth")).where(identity == first).cte("chain", recursive=True)
    )
    links = select(parent, chain.c.depth + 1).join(chain, identity == chain.c.id)
    return chain.union_all(links.where(goes_on, parent.is_not(None), chain.c.depth < MAX_LINKS - 1))


def _until_seen(links: Iterable[Link]) -> Iterator[Link]:
    seen = set()
    for link in links:
        if link.id in seen:
            return
        seen.add(link.id)
        yield link
