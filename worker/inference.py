"""The generation process: talks to any checkpoint or base model, over HTTP on a port that only the service knows.

`POST /generate` with `Authorization: Bearer <token>` and a JSON object of `checkpoint` (name) or `model`, `prompts`,
`n` and the sampling settings. The answer is a stream of JSON lines: `{"index", "text"}` for each piece, a line with
`finish_reason` and token counts for each choice, `{"done": true}` last. An index is prompt × n + choice.

`POST /adopt` with `{"name": "checkpoint_….pt"}` makes a checkpoint of our own out of a legacy file below the root.
`POST /export` with `{"checkpoint": name, "name": …, "merge": …}` makes a model's folder out of a checkpoint. What it
takes to read either is here and not in the service.
`POST /preflight` and `POST /preview` with `{"config": …, "num_characters": …}` say what a run would do, `POST /tokens`
with a tokenizer and sources how many tokens those have.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core.checkpointing import CheckpointStore
from core.errors import (
    CheckpointError,
    CheckpointNotFound,
    ConfigError,
    DeviceBusy,
    DeviceUnavailable,
    ExportError,
    GenerationError,
    ModelUnavailable,
    RatchetError,
    SourceError,
    StorageError,
)
from core.imports import import_torch
from core.machine.processes import exit_with_parent
from worker.forecasts import Forecasts
from worker.inference_process import TOKEN_VARIABLE
from worker.inference_requests import Adopt, Ask, ExportAsk, ForecastAsk, TokensAsk
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from core.generation import Completion
    from core.models import LanguageModel
    from core.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound=BaseModel)


class Models:
    """Models in memory, the least recently used of which makes room.

    Args:
        settings: Places, and how many models to keep.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.store = CheckpointStore(settings.checkpoints)
        self._loaded: OrderedDict[tuple[str, str], tuple[LanguageModel, Tokenizer]] = OrderedDict()
        self._lock = threading.Lock()
        # One model more in memory is enough for each; those that are asked go on meanwhile.
        self._adopting = threading.Lock()
        self._exporting = threading.Lock()

    def get(self, ask: Ask) -> tuple[LanguageModel, Tokenizer]:
        """The model asked for, loaded if it is not yet."""
        key = ("checkpoint", ask.checkpoint) if ask.checkpoint else ("model", ask.model or "")
        with self._lock:
            if key not in self._loaded:
                loaded = self._load(*key)
                while len(self._loaded) >= self.settings.inference_models:
                    self._loaded.popitem(last=False)
                self._loaded[key] = loaded
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _load(self, kind: str, name: str) -> tuple[LanguageModel, Tokenizer]:
        from core.checkpoints.opening import load_base, open_for_generation

        if kind == "model":
            return load_base(name, self.settings.models)
        return open_for_generation(self.store.path_of(name), self.settings.models)

    def adopt(self, wanted: Adopt) -> dict[str, Any]:
        """Make a checkpoint of our own out of a legacy file, once."""
        from core.checkpoints.opening import adopt_legacy

        with self._adopting:
            adopt_legacy(self.store.path_of(wanted.name), self.store, self.settings.models)
        return {"name": Path(wanted.name).stem}

    def export(self, wanted: ExportAsk) -> dict[str, Any]:
        """Write a checkpoint's model below the models root."""
        from core.checkpoints.export import export

        with self._exporting:
            done = export(self.store.path_of(wanted.checkpoint), self.settings.models, wanted.name, merge=wanted.merge)
        return asdict(done)


class Generation:
    """The routes.

    Args:
        models: Where models come from.
        token: What a request must bring.
    """

    def __init__(self, models: Models, token: str) -> None:
        self.models = models
        self.forecasts = Forecasts(models.settings)
        self.token = token.encode()
        # One forward pass at a time: more would only share the same cores.
        self._turn = threading.Lock()

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        if not self._knows(request):
            return _refusal(401, "unauthorized", "the token is wrong")
        try:
            ask = Ask.model_validate_json(await request.body())
        except ValidationError as error:
            return _refusal(422, "generation_invalid", str(error.errors(include_url=False)[0]["msg"]))
        try:
            lines = await run_in_threadpool(self.begin, ask)
        except RatchetError as error:
            return _refusal(_status(error), error.code, error.message)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    async def adopt(self, request: Request) -> Response:
        """Adopt one legacy file."""
        return await self._carry_out(request, Adopt, self.models.adopt)

    async def export(self, request: Request) -> Response:
        """Export one checkpoint."""
        return await self._carry_out(request, ExportAsk, self.models.export)

    async def preflight(self, request: Request) -> Response:
        """Say what a run would do."""
        return await self._carry_out(request, ForecastAsk, self.forecasts.preflight)

    async def preview(self, request: Request) -> Response:
        """Show its first batch."""
        return await self._carry_out(request, ForecastAsk, self.forecasts.preview)

    async def tokens(self, request: Request) -> Response:
        """Count the tokens of sources."""
        return await self._carry_out(request, TokensAsk, self.forecasts.tokens)

    async def _carry_out(self, request: Request, kind: type[Body], act: Callable[[Body], dict[str, Any]]) -> Response:
        if not self._knows(request):
            return _refusal(401, "unauthorized", "the token is wrong")
        try:
            return JSONResponse(await run_in_threadpool(act, kind.model_validate_json(await request.body())))
        except ValidationError as error:
            return _refusal(422, "generation_invalid", str(error.errors(include_url=False)[0]["msg"]))
        except RatchetError as error:
            return _refusal(_status(error), error.code, error.message)

    def _knows(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.token)

    def begin(self, ask: Ask) -> Iterator[str]:
        """Load the model and encode the prompts, so that what is wrong with them is said before the first byte."""
        from core.generation import Completion, Sampling

        model, tokenizer = self.models.get(ask)
        completions = []
        for index in range(len(ask.prompts) * ask.n):
            number, choice = divmod(index, ask.n)
            # Each choice has a seed of its own, so that the same request gives the same n texts.
            seed = None if ask.seed is None else ask.seed + choice
            sampling = Sampling(
                ask.max_new_tokens,
                ask.temperature,
                ask.top_k,
                ask.top_p,
                ask.repetition_penalty,
                seed,
                tuple(ask.stop),
            )
            completions.append(Completion(model, tokenizer, ask.prompts[number], sampling))
        return self._lines(completions)

    def _lines(self, completions: list[Completion]) -> Iterator[str]:
        try:
            yield from self._said(completions)
        except (RatchetError, RuntimeError) as error:
            # After the first byte no status can say it.
            log.exception("generation broke off")
            code = error.code if isinstance(error, RatchetError) else "generation_failed"
            yield _line(error={"code": code, "message": "the model could not go on with this prompt"})

    def _said(self, completions: list[Completion]) -> Iterator[str]:
        for index, completion in enumerate(completions):
            pieces = iter(completion)
            while (piece := self._next(pieces)) is not None:
                yield _line(index=index, text=piece)
            yield _line(
                index=index,
                finish_reason=completion.finish_reason,
                num_prompt_tokens=completion.num_prompt_tokens,
                num_new_tokens=completion.num_new_tokens,
            )
        yield _line(done=True)

    def _next(self, pieces: Iterator[str]) -> str | None:
        with self._turn:
            return next(pieces, None)


def create_app(models: Models, token: str) -> Starlette:
    """The process's routes as an ASGI application."""
    generation = Generation(models, token)
    routes = [
        Route("/generate", generation.answer, methods=["POST"]),
        Route("/adopt", generation.adopt, methods=["POST"]),
        Route("/export", generation.export, methods=["POST"]),
        Route("/preflight", generation.preflight, methods=["POST"]),
        Route("/preview", generation.preview, methods=["POST"]),
        Route("/tokens", generation.tokens, methods=["POST"]),
    ]
    return Starlette(routes=routes)


def main() -> int:
    """Listen on a free port, say which, then import torch and answer."""
    exit_with_parent(signal.SIGTERM, parent=int(os.environ["RATCHET_SUPERVISOR"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = WorkerSettings()
    listening = socket.create_server((settings.inference_host, 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    # Training comes first where both want the same core.
    os.nice(5)
    _be_ready(settings.inference_threads or max(1, (os.cpu_count() or 2) // 2))
    app = create_app(Models(settings), os.environ[TOKEN_VARIABLE])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)).run([listening])
    return 0


def _be_ready(num_threads: int) -> None:
    """So that the first request does not wait for it."""
    import_torch()
    import torch

    torch.set_num_threads(num_threads)


def _status(error: RatchetError) -> int:
    match error:
        case CheckpointNotFound():
            return 404
        case GenerationError() | SourceError() | ConfigError() | DeviceUnavailable():
            return 422
        case CheckpointError() | ModelUnavailable() | ExportError():
            return 409
        case DeviceBusy():
            return 503
        case StorageError():
            return 507
        case _:
            return 400


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message}, status)


def _line(**said: Any) -> str:
    return json.dumps(said, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.exit(main())
