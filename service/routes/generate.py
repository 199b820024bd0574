"""Text from a checkpoint or a base model, by way of a worker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import RatchetError
from service.deps import Checkpoints, Generation, Ledger, Owner, Settings, Streams, UntilAnswered
from service.errors import LimitExceeded
from service.inference import Ask, Desk, Said, find_desk
from service.intake import check_model
from service.problems import status_of
from service.settings import ServiceSettings
from service.sse import Stream, sse_message
from service.tails import Tails

router = APIRouter(tags=["generate"])

Lines = AsyncIterator[Said]

# Bounds make pydantic look at the characters: half a surrogate pair is none, and no worker could be told of it.
Prompt = Annotated[str, Field(min_length=0)]

StopText = Annotated[str, Field(min_length=1, max_length=256)]

_PIECE = {"index", "text"}
_ENDING = {"index", "finish_reason", "num_prompt_tokens", "num_new_tokens"}

_GONE = 499  # What proxies write into their logs for a reader that did not wait; nobody receives it.


class GenerateIn(BaseModel):
    """What to write, with which model, and how the next token is chosen."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = Field(
        None,
        max_length=1024,
        description="Id or name; `latest` is the newest, `<job>:best` has the lowest validation loss.",
    )
    model: str | None = Field(None, max_length=1024, description="A base model, as a job's `base_model` names it.")
    prompt: Prompt | list[Prompt] = Field(description="One text to go on from, or several.")
    max_new_tokens: int = Field(100, ge=0, description="Tokens that each choice may get.")
    temperature: float = Field(0.7, ge=0, le=10, description="0 takes the likeliest token.")
    top_k: int | None = Field(50, ge=1, le=1_000_000, description="Draw from the likeliest tokens alone.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the fewest whose probabilities sum to it.")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="Above 1, words that were said come less often."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] = Field([], description="Ends before any of it.")
    seed: int | None = Field(None, ge=0, lt=2**62, description="The same seed writes the same text.")
    n: int = Field(1, ge=1, le=8, description="Choices for each prompt.")
    stream: bool = Field(False, description="Send each piece as a server-sent event.")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either checkpoint or model")
        return self

    @property
    def prompts(self) -> list[str]:
        """Always several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Choice(BaseModel):
    """One text; `index` is prompt × n + choice."""

    index: int
    prompt_index: int
    text: str
    finish_reason: str


class Usage(BaseModel):
    """Tokens, over all choices; a prompt counts once for each of them."""

    prompt_tokens: int
    completion_tokens: int


class GenerateOut(BaseModel):
    """All choices of all prompts, in order."""

    checkpoint: str | None = None
    model: str | None = None
    choices: list[Choice]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Errand:
    """A request that was checked, and the worker it goes to."""

    ask: Ask
    desk: Desk


def _errand(body: GenerateIn, settings: Settings, shelf: Checkpoints, ledger: Ledger, owner: Owner) -> Errand:
    _check_limits(body, settings)
    if body.model is not None:
        check_model(body.model, settings, "model")
    checkpoint = None if body.checkpoint is None else shelf.find(owner, body.checkpoint).name
    with ledger.read() as session:
        desk = find_desk(session)
    told = body.model_dump(exclude={"checkpoint", "prompt", "stop", "stream"})
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return Errand(Ask(**told, checkpoint=checkpoint, prompts=body.prompts, stop=stop), desk)


@router.post(
    "/generate",
    response_model=None,
    responses={
        200: {
            "model": GenerateOut,
            "description": "All choices; with `stream`, the events `token`, `finish`, `error` and `done`.",
        }
    },
)
async def generate(
    body: GenerateIn,
    errand: Annotated[Errand, Depends(_errand)],
    request: Request,
    settings: Settings,
    tails: Streams,
    inference: Generation,
    until_answered: UntilAnswered,
) -> Response | GenerateOut:
    """Let a checkpoint or a base model go on from one or several prompts."""
    until_answered.enter_context(tails.slot())
    lines = await until_answered.enter_async_context(inference.ask(errand.desk, errand.ask))
    if body.stream:
        return Stream(_events(lines, tails), settings)
    answer = await _unless_gone(request, lines, errand.ask)
    return Response(status_code=_GONE) if answer is None else answer


async def _events(lines: Lines, tails: Tails) -> AsyncGenerator[bytes]:
    try:
        async for said in lines:
            kind, fields = ("finish", _ENDING) if said.text is None else ("token", _PIECE)
            yield sse_message(kind, said.model_dump(include=fields))
            if tails.closing:
                yield sse_message("error", {"code": "stopping", "message": "The service is stopping."})
                return
    except RatchetError as error:
        yield sse_message("error", {"code": error.code, "message": error.message, "status": status_of(error)})
        return
    yield sse_message("done", {})


async def _unless_gone(request: Request, lines: Lines, ask: Ask) -> GenerateOut | None:
    """The whole answer; None as soon as its reader is gone, so that nobody generates for nobody."""
    gathering = asyncio.ensure_future(_gather(lines, ask))
    leaving = asyncio.ensure_future(request.receive())  # The body is read: what comes next is the disconnect.
    try:
        await asyncio.wait({gathering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return gathering.result() if gathering.done() else None
    finally:
        gathering.cancel()
        leaving.cancel()
        await asyncio.gather(gathering, leaving, return_exceptions=True)


async def _gather(lines: Lines, ask: Ask) -> GenerateOut:
    texts: defaultdict[int, str] = defaultdict(str)
    choices, usage = [], Usage(prompt_tokens=0, completion_tokens=0)
    async for said in lines:
        if said.text is not None:
            texts[said.index] += said.text
            continue
        prompt_index, reason = said.index // ask.n, said.finish_reason
        choices.append(
            Choice(index=said.index, prompt_index=prompt_index, text=texts[said.index], finish_reason=reason)
        )
        usage.prompt_tokens += said.num_prompt_tokens
        usage.completion_tokens += said.num_new_tokens
    choices.sort(key=lambda choice: choice.index)
    return GenerateOut(checkpoint=ask.checkpoint, model=ask.model, choices=choices, usage=usage)


def _check_limits(body: GenerateIn, settings: ServiceSettings) -> None:
    """The operator's limits, which no schema knows."""
    if not 1 <= len(body.prompts) <= settings.max_prompts:
        raise LimitExceeded(f"prompt may hold 1 to {settings.max_prompts} texts.", field="prompt")
    if any(len(prompt) > settings.max_prompt_chars for prompt in body.prompts):
        raise LimitExceeded(f"A prompt may have {settings.max_prompt_chars} characters.", field="prompt")
    if body.max_new_tokens > settings.max_new_tokens:
        raise LimitExceeded(f"max_new_tokens may be {settings.max_new_tokens} at most.", field="max_new_tokens")
