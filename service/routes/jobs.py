"""Jobs: submit, resume, look at, steer, remove."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from jobs import catalog, line, queue, thinning
from jobs.tables import State
from jobs.turns import LINE, take_turn
from service.deps import After, Checkpoints, InTurn, JobDep, JobOrLatest, Ledger, Limit, Owner, Settings, config_sized
from service.errors import FilterUnfit
from service.intake import Accepted, Intake, Repeat
from service.resumption import Resumption
from service.schemas import JobIn, JobOut, JobPatch, Page, ResumeIn

router = APIRouter(tags=["jobs"])


async def _intake(settings: Settings, ledger: Ledger, owner: Owner) -> Intake:
    return Intake(settings, ledger, owner)


async def _resumption(intake: Annotated[Intake, Depends(_intake)], shelf: Checkpoints) -> Resumption:
    return Resumption(intake, shelf)


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A request that comes again under the same key is answered with the job of the first.",
    ),
]


@router.post("/jobs", status_code=201, dependencies=[InTurn, Depends(config_sized)])
def submit_job(
    body: JobIn,
    request: Request,
    response: Response,
    intake: Annotated[Intake, Depends(_intake)],
    idempotency_key: IdempotencyKey = None,
) -> JobOut:
    """Put a fresh run in line.

    Answers 201 and the job; again so, with `Idempotency-Replayed: true`, if an earlier request with the same
    `Idempotency-Key` has made it.
    """
    return _answer(intake.submit(body, Repeat.of(idempotency_key, request.url.path, body)), response)


@router.post("/jobs/{ref}/resume", status_code=201, dependencies=[InTurn, Depends(config_sized)])
def resume_job(
    ref: str,
    request: Request,
    response: Response,
    resumption: Annotated[Resumption, Depends(_resumption)],
    body: ResumeIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> JobOut:
    """Go on from a checkpoint (id, name, `latest` or `<job>:best`) or a job.

    A checkpoint, or a finished job's latest one: 201 and a new job, with what differs in `diff`. A paused job goes on
    itself, with the settings, name, priority and metadata that are given: 200; `training_steps` counts from where it
    is. What may not change in the chosen `mode` is a 409 that lists it.
    """
    repeat = Repeat.of(idempotency_key, request.url.path, body)
    return _answer(resumption.resume(ref, body or ResumeIn(), repeat), response)


@router.get("/jobs")
def list_jobs(
    request: Request,
    ledger: Ledger,
    owner: Owner,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[list[State] | None, Query(description="May be given several times.")] = None,
    source: str | None = None,
    model: Annotated[str | None, Query(description="A `model_type`.")] = None,
    order: Annotated[
        Literal["newest", "line"], Query(description="`line`: those that wait, the next one first; no other filters.")
    ] = "newest",
) -> Page[JobOut]:
    """Jobs, newest first. `metadata[key]=value` lists those with that value."""
    metadata = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if order == "line":
        if state or source or model or metadata:
            raise FilterUnfit("order=line lists all that wait; it goes with no filter", field="order")
        with ledger.read() as session:
            jobs, has_more = line.waiting(session, owner, limit, after)
        return Page(data=[JobOut.of(job) for job in jobs], has_more=has_more)
    with ledger.read() as session:
        jobs, has_more = catalog.list_jobs(
            session, owner, limit, after, states=state or (), source=source, model=model, metadata=metadata
        )
    return Page(data=[JobOut.of(job) for job in jobs], has_more=has_more)


@router.get("/jobs/{job_id}")
def get_job(job: JobOrLatest) -> JobOut:
    """One job (id or `latest`) with its progress."""
    return JobOut.of(job)


@router.post("/jobs/{job_id}/cancel", dependencies=[InTurn])
def cancel_job(job: JobDep, ledger: Ledger) -> JobOut:
    """Stop a job for good; a run keeps its final checkpoint. A job that has ended stays as it is."""
    with ledger.write() as session:
        return JobOut.of(queue.request_cancel(session, job))


@router.post("/jobs/{job_id}/pause", dependencies=[InTurn])
def pause_job(job: JobDep, ledger: Ledger) -> JobOut:
    """Stop a job at its next step, with a checkpoint that `resume` goes on from."""
    with ledger.write() as session:
        return JobOut.of(queue.request_pause(session, job))


@router.patch("/jobs/{job_id}", dependencies=[InTurn, Depends(config_sized)])
def change_job(job_id: str, body: JobPatch, ledger: Ledger, owner: Owner) -> JobOut:
    """Change a job's name, priority or metadata, or its place in line."""
    changes = body.model_dump(exclude_none=True, exclude={"before"})
    if "metadata" in changes:
        changes["meta"] = changes.pop("metadata")
    with ledger.write() as session:
        if body.before is not None:
            # Whoever moves one takes his turn before he locks a row, or two of them would wait for each other.
            take_turn(session, LINE)
        job = queue.locked(session, catalog.get_job(session, owner, job_id))
        session.add(job.sqlmodel_update(changes))
        session.flush()
        if body.before is not None:
            job = line.move_before(session, job, catalog.get_job(session, owner, body.before))
        return JobOut.of(job)


@router.delete("/jobs/{job_id}", status_code=204, dependencies=[InTurn])
def delete_job(
    job: JobDep,
    ledger: Ledger,
    shelf: Checkpoints,
    checkpoints: Annotated[bool, Query(description="Remove its checkpoints, too.")] = False,
) -> None:
    """Remove a job that has ended, and its events; its checkpoints stay, unless `checkpoints=true`.

    Then those alone stay that are pinned, or that another job is about to start from.
    """
    catalog.check_ended(job)
    if checkpoints:
        shelf.remove_those_of(job)
    for seq in range(thinning.CHUNK, job.last_seq, thinning.CHUNK):
        with ledger.write() as session:
            catalog.delete_events(session, job, up_to_seq=seq)
    with ledger.write() as session:
        catalog.delete_job(session, job)


def _answer(accepted: Accepted, response: Response) -> JobOut:
    response.headers["Location"] = f"/jobs/{accepted.job.id}"
    response.status_code = 201 if accepted.created else 200
    if accepted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return JobOut.of(accepted.job)
