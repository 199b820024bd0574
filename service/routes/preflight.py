"""What a run would do, before it does it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.deps import Generation, Ledger, Owner, Settings, config_sized
from service.forecasts import Forecasts, PreflightOut
from service.intake import Intake
from service.schemas import JobIn

router = APIRouter(tags=["jobs"])


async def _forecasts(settings: Settings, ledger: Ledger, owner: Owner, generation: Generation) -> Forecasts:
    return Forecasts(Intake(settings, ledger, owner), ledger, generation)


ForecastsDep = Annotated[Forecasts, Depends(_forecasts)]


@router.post("/jobs/preflight", dependencies=[Depends(config_sized)])
def preflight_job(
    body: JobIn,
    forecasts: ForecastsDep,
    time: Annotated[
        bool, Query(description="Try three updates on the worker, which takes seconds to minutes.")
    ] = False,
) -> PreflightOut:
    """Say what a run would do: tokens, steps, memory, rows that are left out, and what to think over.

    Takes the body of `POST /jobs`, refuses what that refuses, starts nothing and keeps nothing. Without a worker, what
    takes a tokenizer or a model to know is null, and a warning says so.
    """
    return forecasts.preflight(body, time=time)
