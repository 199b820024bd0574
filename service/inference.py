"""A worker's generation, as seen from here: which worker, what it is asked, and what its lines mean.

The worker answers in JSON lines; see `worker/inference.py` for what it says. Everything that its side gets wrong is
told as an error of ours, so that no detail of it leaves.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import httpx2
from pydantic import BaseModel, ValidationError
from sqlmodel import Session

from core.errors import DeviceBusy, DiskFull, RatchetError, StorageError
from jobs.tables import Worker
from jobs.workers import list_workers
from service.admission import one_of
from service.errors import GenerationFailed, GenerationRefused, TooManyAtOnce, WorkerUnavailable
from service.schemas import is_alive

# A model that is loaded for the first time, or a turn behind others, may take minutes to say its first word.
_PATIENCE = httpx2.Timeout(600.0, connect=5.0, pool=30.0)

MAX_ERRANDS = 4
"""Exports and conversions at the same time: each keeps a thread for as long as the worker takes, and half as many of
them as may change something leave room for those that do."""

_TOLD_ON = frozenset({400, 404, 409, 413, 422, 429})
"""A worker's refusals that concern the request; all others are between the worker and us."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the worker is asked, in its own words."""

    checkpoint: str | None
    model: str | None
    prompts: list[str]
    n: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int | None
    stop: list[str]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one worker generates."""

    url: str
    token: str


class Said(BaseModel):
    """One line of a worker's answer: a piece of a choice, its end, the end of all, or what went wrong."""

    index: int = 0
    text: str | None = None
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    done: bool = False
    error: dict[str, Any] | None = None


def find_desk(session: Session) -> Desk:
    """The generating worker that was heard of last.

    Raises:
        WorkerUnavailable: none was heard of lately.
    """
    at_hand = [worker for worker in list_workers(session) if _generates(worker)]
    if not at_hand:
        raise WorkerUnavailable("No worker that generates text is at work; start one with `ratchet work`.")
    freshest = max(at_hand, key=lambda worker: worker.seen_at)
    return Desk(str(freshest.inference_url), freshest.inference_token or "")


class Inference:
    """Asks workers. Made inside the event loop that it serves."""

    def __init__(self) -> None:
        # No proxy of the environment's stands between a service and its workers.
        self._http = httpx2.AsyncClient(timeout=_PATIENCE, trust_env=False)
        self._errands = anyio.Semaphore(MAX_ERRANDS)

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def ask(self, desk: Desk, ask: Ask) -> AsyncIterator[AsyncIterator[Said]]:
        """The lines of an answer that has begun; leaving early ends it on the other side too.

        Raises:
            WorkerUnavailable: the worker does not answer.
            GenerationRefused: it cannot do what the request asks.
            GenerationFailed: it cannot do it for a reason of its own.
        """
        headers = {"Authorization": f"Bearer {desk.token}"}
        request = self._http.build_request(
            "POST", f"{desk.url.rstrip('/')}/generate", json=asdict(ask), headers=headers
        )
        try:
            answer = await self._http.send(request, stream=True)
        except httpx2.RequestError as error:
            raise WorkerUnavailable("The worker that generates text does not answer; it may be restarting.") from error
        try:
            if answer.status_code != 200:
                raise await _refusal(answer)
            yield _lines(answer)
        finally:
            await answer.aclose()

    async def adopt(self, desk: Desk, name: str) -> None:
        """Let a worker make a checkpoint of a legacy file, which nobody but a worker can read.

        Raises:
            TooManyAtOnce: workers are busy with others.
            WorkerUnavailable, GenerationRefused, GenerationFailed: as for `ask`.
        """
        await self._post(desk, "adopt", {"name": name})

    async def export(self, desk: Desk, checkpoint: str, name: str | None, merge: bool) -> dict[str, Any]:
        """Let a worker write a checkpoint's model below the models root; what it says of the folder.

        Raises:
            TooManyAtOnce: workers are busy with others.
            StorageError: the folder does not fit there, or the disk refuses it.
            WorkerUnavailable, GenerationRefused, GenerationFailed: as for `ask`.
        """
        return await self._post(desk, "export", {"checkpoint": checkpoint, "name": name, "merge": merge})

    async def foretell(self, desk: Desk, what: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Let a worker say what a run would do (`preflight`) or see (`preview`).

        Raises:
            RatchetError: it refuses, or too many are asked for at a time.
        """
        return await self._post(desk, what, asked)

    async def _post(self, desk: Desk, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {desk.token}"}
        said = f"{MAX_ERRANDS} things are being exported, converted or foretold, and no more are at the same time."
        with one_of(self._errands, TooManyAtOnce(said)):
            try:
                answer = await self._http.post(f"{desk.url.rstrip('/')}/{path}", json=body, headers=headers)
            except httpx2.RequestError as error:
                raise WorkerUnavailable("The worker that reads checkpoints does not answer.") from error
        if answer.status_code != 200:
            raise await _refusal(answer)
        told: dict[str, Any] = answer.json()
        return told


def _generates(worker: Worker) -> bool:
    return worker.inference_url is not None and not worker.draining and is_alive(worker)


async def _lines(answer: httpx2.Response) -> AsyncIterator[Said]:
    """Each line up to the last one; an answer without that one broke off."""
    try:
        async for line in answer.aiter_lines():
            said = Said.model_validate_json(line)
            if said.done:
                return
            if said.error is not None:
                raise _failure(said.error)
            yield said
    except (httpx2.RequestError, ValidationError) as error:
        raise GenerationFailed("The worker broke off in the middle of its answer.") from error
    raise GenerationFailed("The worker broke off in the middle of its answer.")


async def _refusal(answer: httpx2.Response) -> RatchetError:
    try:
        said = json.loads(await answer.aread())
        code, message = str(said["code"]), str(said["message"])
    except (httpx2.RequestError, ValueError, KeyError, TypeError):
        code, message = "", ""
    if answer.status_code in _TOLD_ON and code:
        return GenerationRefused(answer.status_code, code, message)
    if answer.status_code == 507:
        return DiskFull(message) if code == DiskFull.code else StorageError(message)
    if answer.status_code == 503 and code == DeviceBusy.code:
        return DeviceBusy(message)
    if answer.status_code == 503:
        return WorkerUnavailable(message or "The worker that generates text is not ready.")
    return GenerationFailed("The worker could not generate text.")


def _failure(error: dict[str, Any]) -> RatchetError:
    """What went wrong after the answer had begun."""
    if error.get("code") == "generation_invalid":
        return GenerationRefused(422, "generation_invalid", str(error.get("message", "")))
    return GenerationFailed(str(error.get("message") or "The worker could not go on."))
