"""What routes ask for, each by one name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated

import anyio
from anyio import from_thread
from fastapi import Depends, Query, Request

from jobs import catalog
from jobs.database import BUSY_SECONDS, Database
from jobs.errors import LedgerUnavailable
from jobs.tables import Job
from service.errors import BodyTooLarge
from service.inference import Inference, find_desk
from service.settings import ServiceSettings
from service.shelf import LATEST, Shelf
from service.tails import Tails

# The async ones below only hand over what is there, which is no work for another thread.


async def _settings(request: Request) -> ServiceSettings:
    settings: ServiceSettings = request.app.state.settings
    return settings


async def _ledger(request: Request) -> Database:
    ledger: Database = request.app.state.ledger
    return ledger


async def _tails(request: Request) -> Tails:
    tails: Tails = request.app.state.tails
    return tails


async def _inference(request: Request) -> Inference:
    inference: Inference = request.app.state.inference
    return inference


async def _owner() -> str:
    return "local"


async def _until_answered() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


Settings = Annotated[ServiceSettings, Depends(_settings)]
Ledger = Annotated[Database, Depends(_ledger)]
Streams = Annotated[Tails, Depends(_tails)]
Generation = Annotated[Inference, Depends(_inference)]
Owner = Annotated[str, Depends(_owner)]
UntilAnswered = Annotated[AsyncExitStack, Depends(_until_answered)]
"""Closes what is entered into it after the last byte of the answer, or when the reader goes away."""

Limit = Annotated[int, Query(ge=1, le=200, description="Items in one page.")]
After = Annotated[str | None, Query(description="Id of the last item of the page before.")]


async def _shelf(settings: Settings, ledger: Ledger, inference: Generation) -> Shelf:
    def convert(name: str) -> None:
        with ledger.read() as session:
            desk = find_desk(session)
        # Routes that look for checkpoints run in a thread of their own; the connection belongs to the event loop.
        from_thread.run(inference.adopt, desk, name)

    return Shelf(ledger, settings.checkpoints, convert)


Checkpoints = Annotated[Shelf, Depends(_shelf)]


def _job(job_id: str, ledger: Ledger, owner: Owner) -> Job:
    with ledger.read() as session:
        return catalog.get_job(session, owner, job_id)


def _job_or_latest(job_id: str, ledger: Ledger, owner: Owner) -> Job:
    with ledger.read() as session:
        newest, _ = catalog.list_jobs(session, owner, 1) if job_id == LATEST else ([], False)
        return newest[0] if newest else catalog.get_job(session, owner, job_id)


JobDep = Annotated[Job, Depends(_job)]
JobOrLatest = Annotated[Job, Depends(_job_or_latest)]
"""By id, or the newest for `latest`, which may be another one at the next request: for looking, not for steering."""


async def config_sized(request: Request, settings: Settings) -> None:
    """A dependency of routes that take a job's settings: those are small.

    Raises:
        BodyTooLarge: the body has more than `max_config_bytes`.
    """
    if len(await request.body()) > settings.max_config_bytes:
        raise BodyTooLarge(f"A job's settings may have {settings.max_config_bytes} bytes, and these have more.")


WRITERS = 8
"""Requests that change something at the same time."""


async def _turn(request: Request) -> AsyncIterator[None]:
    """Let in few of those that change something; the others wait outside, for as long as a transaction would.

    They wait for the ledger in threads, of which there are forty. Were they all let in, someone who keeps the ledger
    locked would keep every thread waiting, and those who only want to look would wait for a thread.
    """
    writing: anyio.Semaphore = request.app.state.writing
    try:
        with anyio.fail_after(BUSY_SECONDS):
            await writing.acquire()
    except TimeoutError:
        raise LedgerUnavailable("The ledger is busy; nothing was changed, try again in a moment.") from None
    try:
        yield
    finally:
        writing.release()


InTurn = Depends(_turn, scope="function")
"""For routes that change something."""
