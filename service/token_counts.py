"""How many tokens sources have under a tokenizer: a worker is asked, since that takes one to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from anyio import from_thread
from pydantic import BaseModel, Field

from core.errors import CheckpointNotFound
from core.sources.beginnings import MOST_CHARACTERS
from core.sources.rows import NO_COLUMNS
from jobs.database import Database
from service.errors import GenerationRefused
from service.inference import Desk, Inference, find_desk
from service.intake import check_model
from service.schemas import SourceOut
from service.settings import ServiceSettings
from service.shelf import Shelf

CHARACTERS = "characters"

SECONDS = 30.0
LIST_SECONDS = 10.0
"""That a worker may count: for one source, and for a page of them."""

LATE_SECONDS = 20.0
"""Beside those, to find the tokenizer."""

LISTED_CHARACTERS = 1 << 20
"""Read of each source of a list, at most."""

NUM_AT_ONCE = 200


class CountedSourceOut(SourceOut):
    """A source, or why it cannot be one, and its tokens where a tokenizer was named."""

    num_tokens: int | None = Field(
        None, description="With `tokenizer`. Null where nothing is known of the source's rows, or time was over."
    )
    is_estimate: bool = Field(False, description="The tokens are reckoned from the beginning of the source.")


class _Count(BaseModel):
    """What a worker says of one source."""

    num_tokens: int | None
    is_estimate: bool
    error: dict[str, str] | None = None


class TokenCounts:
    """Counts for one request.

    Args:
        shelf: Knows checkpoints by id and name.
        ledger: Knows the workers.
        generation: Asks them.
        settings: Say which models may be named.
        owner: Of the request.
    """

    def __init__(
        self, shelf: Shelf, ledger: Database, generation: Inference, settings: ServiceSettings, owner: str
    ) -> None:
        self.shelf = shelf
        self.ledger = ledger
        self.generation = generation
        self.settings = settings
        self.owner = owner

    def of_one(self, source: SourceOut, columns: Mapping[str, str], tokenizer: str) -> CountedSourceOut:
        """A source with its tokens.

        Raises:
            WorkerUnavailable: nobody can count.
            RatchetError: there is no such tokenizer, or it cannot encode the source.
        """
        counts = self._asked([source], columns, tokenizer, SECONDS, MOST_CHARACTERS)
        found = counts.get(source.name)
        if found is not None and found.error is not None:
            raise GenerationRefused(422, found.error["code"], found.error["message"])
        return counted(source, found)

    def of_many(self, sources: Sequence[SourceOut], tokenizer: str) -> list[CountedSourceOut]:
        """A page of sources with their tokens, as far as they can be had in a few seconds.

        Raises:
            WorkerUnavailable: nobody can count.
            RatchetError: there is no such tokenizer.
        """
        counts = self._asked(sources, NO_COLUMNS, tokenizer, LIST_SECONDS, LISTED_CHARACTERS)
        return [counted(source, counts.get(source.name)) for source in sources]

    def _asked(
        self, sources: Sequence[SourceOut], columns: Mapping[str, str], tokenizer: str, seconds: float, most: int
    ) -> dict[str, _Count]:
        """What a worker says of those of which enough is known to be asked about, by name."""
        known = [source for source in sources if source.num_characters is not None][:NUM_AT_ONCE]
        asked = {
            **self._tokenizer(tokenizer),
            "sources": [{**source.model_dump(include=_TOLD), "columns": dict(columns)} for source in known],
            "seconds": seconds,
            "most_characters": most,
        }
        with self.ledger.read() as session:
            desk = find_desk(session)
        # Routes run in a thread of their own; the connection belongs to the event loop.
        told = from_thread.run(self._within, seconds + LATE_SECONDS, desk, asked)
        return {source.name: _Count(**count) for source, count in zip(known, told, strict=False)}

    async def _within(self, seconds: float, desk: Desk, asked: dict[str, Any]) -> list[dict[str, Any]]:
        with anyio.move_on_after(seconds):
            told: list[dict[str, Any]] = (await self.generation.foretell(desk, "tokens", asked))["counts"]
            return told
        return []

    def _tokenizer(self, ref: str) -> dict[str, str]:
        """Whose tokens a name means, in a worker's words."""
        if ref == CHARACTERS:
            return {}
        try:
            return {"checkpoint": self.shelf.find(self.owner, ref).name}
        except CheckpointNotFound:
            check_model(ref, self.settings, "tokenizer")
            return {"model": ref}


_TOLD = {"name", "num_characters", "sha256"}


def counted(source: SourceOut, count: _Count | None = None) -> CountedSourceOut:
    """A source with what was found of its tokens."""
    found = {} if count is None else count.model_dump(include={"num_tokens", "is_estimate"})
    return CountedSourceOut(**source.model_dump(), **found)
