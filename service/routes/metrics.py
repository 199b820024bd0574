"""A job's loss as a curve."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from jobs.curves import draw
from service.admission import one_of
from service.curves import CurveOut
from service.deps import JobOrLatest, Ledger, UntilAnswered
from service.errors import TooManyAtOnce
from service.formats import accepted

router = APIRouter(tags=["jobs"])

Format = Literal["json", "csv"]

_FORMATS: dict[str, Format] = {"application/json": "json", "text/csv": "csv"}

MAX_POINTS = 20_000

MAX_CURVES = 4
"""Drawn at the same time: a log of a million events keeps a thread, and the interpreter, busy for seconds."""


async def _wanted(
    request: Request, format: Annotated[Format | None, Query(description="Counts more than `Accept`.")] = None
) -> Format:
    return format or accepted(request, _FORMATS, "json")


async def _admitted(request: Request, until_answered: UntilAnswered) -> None:
    said = f"{MAX_CURVES} curves are being drawn, and no more are at the same time."
    until_answered.enter_context(one_of(request.app.state.curves, TooManyAtOnce(said)))


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=CurveOut,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
    dependencies=[Depends(_admitted)],
)
def job_metrics(
    job: JobOrLatest,
    ledger: Ledger,
    wanted: Annotated[Format, Depends(_wanted)],
    points: Annotated[
        int, Query(ge=10, le=MAX_POINTS, description="At most so many steps, and so many evaluations.")
    ] = 1000,
    after_step: Annotated[int | None, Query(ge=0, lt=2**63, description="Only what was made after this step.")] = None,
    lineage: Annotated[bool, Query(description="Also the runs that it went on from.")] = False,
) -> CurveOut | Response:
    """The loss by step, as JSON or (`?format=csv`, `Accept: text/csv`) as CSV.

    Each step is there once: what an attempt drew before it crashed, and the next one made again, is the next one's. If
    there are more steps than `points`, each stretch of them is told by its first, last, lowest and highest loss (M4).

    With `lineage=true` it is one curve over all the runs that the job went on from, each up to the step that the next
    one started from; `segments` says which is whose. A `warm_start` counts its steps from 0, so nothing comes before
    it. If a run is not known any more, the curve begins after it, and `missing` says so.
    """
    curve = CurveOut.of(draw(ledger.read, job, num_points=points, after_step=after_step, lineage=lineage))
    if wanted == "json":
        return curve
    name = {"Content-Disposition": f'attachment; filename="{job.id}.csv"'}
    return Response(curve.to_csv(), media_type="text/csv", headers=name)
