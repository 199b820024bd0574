"""A job's events: a stream for programs, lines for a person, pages for whoever asks again."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs import feed
from jobs.database import Database
from jobs.tables import FINAL, Job, State
from jobs.workers import list_workers
from service.deps import JobOrLatest, Ledger, Settings, Streams, UntilAnswered
from service.errors import PositionInvalid
from service.formats import accepted
from service.schemas import EventOut, Page, is_alive, iso_time
from service.shelf import LATEST
from service.sse import JobLog, Stream

router = APIRouter(tags=["events"])

Format = Literal["sse", "text", "json"]

_FORMATS: dict[str, Format] = {
    "text/event-stream": "sse",
    "text/plain": "text",
    "application/json": "json",
}

_MAX_DIGITS = 18


def _position(
    job_id: str,
    job: JobOrLatest,
    after: Annotated[str | None, Query(description="Number of the last event seen.")] = None,
    last_event_id: Annotated[str | None, Header(description="The same, as an EventSource says it; it counts.")] = None,
) -> int:
    """The number of the last event that the reader has seen.

    A browser keeps asking the same address, so what it says itself is the newer of the two.
    """
    if job_id == LATEST and (last_event_id or after):
        raise PositionInvalid(
            f"'latest' may be another job than the one whose events you saw; ask for /jobs/{job.id}/events.",
            field="after",
        )
    said = last_event_id or after or "0"
    if not (said.isascii() and said.isdecimal() and len(said) <= _MAX_DIGITS):
        raise PositionInvalid(f"An event's number is a whole number from 0 on, not {said[:40]!r}.", field="after")
    if int(said) > job.last_seq:
        raise PositionInvalid(f"Job {job.id} has {job.last_seq} events; there is no event {said} yet.", field="after")
    return int(said)


async def _wanted(
    request: Request, format: Annotated[Format | None, Query(description="Counts more than `Accept`.")] = None
) -> Format:
    return format or accepted(request, _FORMATS, "sse")


@router.get(
    "/jobs/{job_id}/events",
    response_model=None,
    responses={
        200: {
            "description": "Server-sent events by default; lines of text or a page of JSON if asked for.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}},
                "text/plain": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "object"}},
            },
        },
        204: {"description": "The job has ended and every event of it was seen."},
    },
)
async def job_events(
    job: JobOrLatest,
    seq: Annotated[int, Depends(_position)],
    wanted: Annotated[Format, Depends(_wanted)],
    settings: Settings,
    ledger: Ledger,
    tails: Streams,
    until_answered: UntilAnswered,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events in one page of JSON.")] = 500,
) -> Response | Page[EventOut]:
    """What a job says, from any number on: live until it ends, and from the beginning if nothing else is asked.

    `curl -N` gets server-sent events, or with `?format=text` the lines of the log. `?format=json` (or `Accept:
    application/json`) is a page, with `limit`. After the last event, `done`, a stream ends; an EventSource that comes
    back then gets 204, which stops it. For `latest` in place of an id there is no going on from a number.
    """
    if wanted == "json":
        return await run_in_threadpool(_page, ledger, job, seq, limit)
    if job.state in FINAL and seq == job.last_seq:
        return Response(status_code=204)
    log = JobLog(tails, until_answered.enter_context(tails.watch(job.id)), seq)
    if wanted == "text":
        waits = await run_in_threadpool(_waits_for_a_worker, ledger, job)
        return Stream(log.as_text(waits=waits), settings, "text/plain")
    return Stream(log.as_sse(), settings)


def _waits_for_a_worker(ledger: Database, job: Job) -> bool:
    if job.state is not State.QUEUED:
        return False
    with ledger.read() as session:
        return not any(is_alive(worker) for worker in list_workers(session))


def _page(ledger: Database, job: Job, seq: int, limit: int) -> Page[EventOut]:
    with ledger.read() as session:
        rows = feed.after(session, job.id, seq, limit + 1)
    data: list[dict[str, Any]] = [json.loads(row.data) for row in rows[:limit]]
    return Page(
        data=[
            EventOut(seq=row.seq, kind=row.kind, created_at=iso_time(row.created_at), attempt=row.attempt, data=said)
            for row, said in zip(rows, data, strict=False)
        ],
        has_more=len(rows) > limit,
    )
