"""What a model writes while it trains, and when it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from core.events import Sample
from core.generation import Completion, Sampling, final_prompt
from core.monitoring.evaluation import ShouldStop
from core.parts import Parts


def write_samples(parts: Parts, step: int, should_stop: ShouldStop) -> Iterator[Sample]:
    """A text for each of the run's prompts; cut short if a stop is asked for.

    No generator that training draws from is touched. A run that keeps averages of its weights writes with them.

    Raises:
        GenerationError: a prompt cannot be encoded.
    """
    config = parts.config
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k, seed=config.seed)
    for prompt in config.sample_prompts or (final_prompt(config),):
        pieces: list[str] = []
        with parts.averages.swapped(parts.model) if parts.averages else nullcontext():
            for piece in Completion(parts.model, parts.tokenizer, prompt, sampling):
                pieces.append(piece)
                if should_stop():
                    break
        yield Sample(step, prompt, "".join(pieces))
