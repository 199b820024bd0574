"""The application: rooms, routes, and the rings around them. Nothing happens on import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from jobs.database import Database
from service.auth import BodyGuard, HostGuard, KeyGuard, OriginGuard
from service.deps import WRITERS
from service.edge import Edge
from service.inference import Inference
from service.problems import answer_errors
from service.routes import (
    checkpoints,
    downloads,
    events,
    export,
    generate,
    health,
    jobs,
    metrics,
    models,
    pages,
    preflight,
    previews,
    sources,
    workers,
)
from service.schemas import Problem
from service.settings import ServiceSettings
from service.tails import Tails

ROUTERS = (
    *(jobs, preflight, events, metrics, checkpoints, downloads, export),
    # Before the sources, whose names may have any number of slashes.
    *(previews, sources, models, generate, workers, health, pages),
)

_OPEN_ROUTES = frozenset({"/livez", "/readyz"})


class RatchetAPI(FastAPI):
    """FastAPI, with what its schema cannot know: the key that is asked for, and the media type of errors."""

    def openapi(self) -> dict[str, Any]:
        """The schema, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    _describe(operation, is_open=path in _OPEN_ROUTES)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service as an ASGI application; its ledger is opened when it starts up and closed when it ends."""
    app = RatchetAPI(
        title="Ratchet",
        description="A self-hosted training service for language models: nothing it has trained is ever lost.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": Problem, "description": "What is wrong, and what to do."}},
    )
    app.state.settings = settings
    for module in ROUTERS:
        app.include_router(module.router)
    pages.mount_web(app)
    answer_errors(app)
    # The last one added is the first one asked.
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes, max_seconds=settings.body_seconds)
    if settings.api_key is not None:
        app.add_middleware(KeyGuard, key=settings.api_key.get_secret_value())
    app.add_middleware(OriginGuard)
    app.add_middleware(HostGuard, settings=settings)
    app.add_middleware(Edge)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ServiceSettings = app.state.settings
    ledger = Database(settings.database_url)
    await run_in_threadpool(ledger.migrate)
    app.state.ledger = ledger
    app.state.inference = Inference()
    app.state.readiness = health.Readiness(ledger)
    app.state.writing = anyio.Semaphore(WRITERS)
    app.state.downloads = anyio.Semaphore(downloads.MAX_DOWNLOADS)
    app.state.curves = anyio.Semaphore(metrics.MAX_CURVES)
    app.state.tails = Tails(ledger, settings.poll_seconds, settings.max_streams)
    poller = asyncio.create_task(app.state.tails.run())
    try:
        yield
    finally:
        app.state.tails.close()
        poller.cancel()
        with suppress(asyncio.CancelledError):
            await poller
        await app.state.inference.close()
        ledger.close()


def _describe(operation: dict[str, Any], *, is_open: bool) -> None:
    if not is_open:
        operation["security"] = [{"bearer": []}, {"key": []}]
    content = operation["responses"]["default"]["content"]
    content["application/problem+json"] = content.pop("application/json")
