"""What a run would do, said by the process that has torch and tokenizers at hand anyway."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from core.checkpointing import CheckpointStore
from core.config import TrainingConfig, parse
from core.errors import SourceError
from core.hyperparameters.data import SourceShare
from worker.gpus import free_gpu
from worker.inference_requests import CountedSource, ForecastAsk, TokensAsk
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from core.forecasts.preflight import Prospect
    from core.forecasts.token_counts import TokenCount, TokenCounter
    from core.sources.beginnings import Beginning
    from core.tokens.tokenizer import Tokenizer

UNTIMED = "how long a step takes could not be tried: three of them did not come to their end within two minutes"


class Forecasts:
    """One at a time: each reads megabytes and keeps a core busy for seconds.

    Args:
        settings: Places.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.store = CheckpointStore(settings.checkpoints)
        self._turn = threading.Lock()

    def preflight(self, wanted: ForecastAsk) -> dict[str, Any]:
        """What a run would do; with `time`, how long it would take."""
        from core.forecasts.preflight import preflight

        with self._turn:
            told = preflight(self._prospect(wanted))
            return {**told, **(self._timed(wanted, told) if wanted.time else {})}

    def preview(self, wanted: ForecastAsk) -> dict[str, Any]:
        """Its first batch."""
        from core.forecasts.previews import preview

        with self._turn:
            return preview(self._prospect(wanted))

    def tokens(self, wanted: TokensAsk) -> dict[str, Any]:
        """How many tokens sources have; None for those for which there was no time.

        Raises:
            RatchetError: there is no such tokenizer.
        """
        from core.forecasts.token_counts import TokenCount, TokenCounter

        began = time.monotonic()
        if not self._turn.acquire(timeout=wanted.seconds):
            return {"counts": [_said(TokenCount()) for _ in wanted.sources]}
        try:
            left = wanted.seconds - (time.monotonic() - began)
            counter = TokenCounter(self._tokenizer(wanted), self.settings.data / "cache", left, wanted.most_characters)
            return {"counts": [self._count(counter, source) for source in wanted.sources]}
        finally:
            self._turn.release()

    def _count(self, counter: TokenCounter, source: CountedSource) -> dict[str, Any]:
        from core.forecasts.token_counts import TokenCount

        try:
            part = self._beginning(source, counter.most_characters)
        except SourceError as error:
            return _said(TokenCount(error=error))
        return _said(counter.count(part))

    def _beginning(self, source: CountedSource, most_characters: int) -> Beginning:
        from core.sources.beginnings import beginnings
        from core.sources.files import SourceFolder

        share = SourceShare.model_validate({"source": source.name, "columns": source.columns})
        sizes = {source.name: source.num_characters}
        [part] = beginnings([share], SourceFolder(self.settings.sources), sizes, most_characters, source.sha256)
        return part

    def _tokenizer(self, wanted: TokensAsk) -> Tokenizer | None:
        from core.forecasts.token_counts import tokenizer_of_base, tokenizer_of_checkpoint

        if wanted.checkpoint is not None:
            return tokenizer_of_checkpoint(self.store.path_of(wanted.checkpoint), self.settings.models)
        if wanted.model is not None:
            return tokenizer_of_base(wanted.model, self.settings.models)
        return None

    def _prospect(self, wanted: ForecastAsk) -> Prospect:
        from core.forecasts.preflight import Prospect
        from core.sources.beginnings import beginnings
        from core.sources.files import SourceFolder

        config = parse(TrainingConfig, wanted.config)
        parts = beginnings(config.shares, SourceFolder(self.settings.sources), wanted.num_characters)
        return Prospect(config, parts, self.settings.models)

    def _timed(self, wanted: ForecastAsk, told: dict[str, Any]) -> dict[str, Any]:
        from core.forecasts.timing import seconds_per_step

        total = told["memory_bytes"]["total"]
        if total is not None and total > told["memory_at_hand_bytes"]:
            # What does not fit would be tried at the cost of whatever else runs here; a warning says it already.
            return {}
        config = parse(TrainingConfig, wanted.config)
        # Where a job trains, both would be slow, and maybe run out of memory: it is had alone, or not at all.
        with free_gpu(config.device) as visible:
            places = (self.settings.sources, self.settings.models)
            seconds = seconds_per_step(config, *places, wanted.num_characters, visible)
        if seconds is None:
            return {"said": [*told["said"], UNTIMED]}
        return {"seconds_per_step": seconds, "seconds": seconds * told["training_steps"]}


def _said(count: TokenCount) -> dict[str, Any]:
    error = None if count.error is None else {"code": count.error.code, "message": count.error.message}
    return {"num_tokens": count.num_tokens, "is_estimate": count.is_estimate, "error": error}
