"""Token ids in, token ids out: sampling from a model, one token at a time.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.config import TrainingConfig
from core.errors import GenerationError
from core.models import LanguageModel
from core.tokens.tokenizer import Tokenizer

GREEDY_BELOW = 1e-4
"""Dividing logits by less than this leaves nothing but the likeliest token, or infinities."""

DOMAIN_PROMPT = "QUESTION: "
"""A prompt from the domain of the bundled source."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 300
    temperature: float = 0.7
    """Divides the logits; 0, or nearly 0, takes the likeliest token."""
    top_k: int | None = 50
    """Draw from the k likeliest tokens alone."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities sum to p."""
    repetition_penalty: float = 1.0
    """Divides (or, below zero, multiplies) the logits of tokens already there."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""


def generate_ids(model: LanguageModel, prompt_T: list[int], sampling: Sampling) -> Iterator[int]:
    """The new token ids, each as soon as it is chosen.

    A context longer than the model can see slides: its last three quarters are read again, then grow anew.
    """
    if not prompt_T:
        raise GenerationError("the prompt has no tokens")
    device = next(model.parameters()).device
    generator = torch.Generator(device)
    generator.manual_seed(sampling.seed) if sampling.seed is not None else generator.seed()
    context = list(prompt_T)
    pending, cache, num_seen = context[-model.max_context :], None, 0
    was_training = model.training
    model.eval()
    try:
        for _ in range(sampling.max_new_tokens):
            if num_seen + len(pending) > model.max_context:
                pending, cache, num_seen = context[-max(1, model.max_context * 3 // 4) :], None, 0
            with torch.inference_mode():
                logits_BV, cache = model.predict(torch.tensor([pending], device=device), cache)
                chosen = _choose(logits_BV[0].float(), context, sampling, generator)
            num_seen += len(pending)
            context.append(chosen)
            pending = [chosen]
            yield chosen
    finally:
        model.train(was_training)


class Completion:
    """The text after a prompt, in pieces that join to the whole: no half character, nothing from a stop string on.

    Args:
        model: What writes.
        tokenizer: The model's own.
        prompt: Text to go on from; an empty one stands for what texts begin with, or else the zero token.
        sampling: How tokens are chosen and when to end.

    Raises:
        GenerationError: the prompt cannot be encoded.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.prompt_ids = [*tokenizer.beginning(prompt), *map(int, tokenizer.encode(prompt))] or [0]
        self.new_ids: list[int] = []
        self.finish_reason = "length"

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_new_tokens(self) -> int:
        """Tokens chosen so far."""
        return len(self.new_ids)

    def __iter__(self) -> Iterator[str]:
        """The pieces, each as soon as it is certain.

        Text is held back while it could still turn out to be the beginning of a stop string or half of a character.
        """
        stop, sent = self.sampling.stop, 0
        for token in generate_ids(self.model, self.prompt_ids, self.sampling):
            self.new_ids.append(token)
            text = self.tokenizer.decode(self.new_ids)
            ends = [at for at in (text.find(mark, sent) for mark in stop) if at >= 0]
            if ends:
                self.finish_reason = "stop"
            safe = min(ends) if ends else len(text) - _held_back(text, stop)
            if safe > sent:
                yield text[sent:safe]
                sent = safe
            if ends:
                return
        rest = self.tokenizer.decode(self.new_ids)[sent:]
        if rest:
            yield rest


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end that may not be shown yet."""
    incomplete = len(text) - len(text.rstrip("�"))
    longest = 0
    for mark in stop:
        for length in range(min(len(mark) - 1, len(text)), 0, -1):
            if text.endswith(mark[:length]):
                longest = max(longest, length)
                break
    return max(incomplete, longest)


def _choose(logits_V: Tensor, context: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(context)), device=logits_V.device)
        values = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V = logits_V.clone()
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    logits_V = _keep_likeliest(logits_V / sampling.temperature, sampling.top_k, sampling.top_p)
    return int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))


def _keep_likeliest(logits_V: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    if top_k is not None and top_k < logits_V.numel():
        weakest = torch.topk(logits_V, top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < weakest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered_V, order_V = logits_V.softmax(-1).sort(descending=True)
        # The token that crosses p stays: what counts is the mass before it. The likeliest stays however small p is.
        beyond_V = ordered_V.cumsum(-1) - ordered_V >= top_p
        beyond_V[0] = False
        logits_V = logits_V.index_fill(0, order_V[beyond_V], -torch.inf)
    return logits_V


def final_prompt(config: TrainingConfig) -> str:
    """Of the sample that ends a run: in-domain for pretrained models, the zero token (an empty prompt) otherwise."""
    return DOMAIN_PROMPT if config.is_pretrained else ""
