"""How many tokens sources have under a tokenizer: counted if they are kept or few, else reckoned from a beginning."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from core.bases.at_hand import models_at_hand
from core.checkpoints.manifest import read_manifest
from core.config import TrainingConfig, parse
from core.errors import ConfigError, RatchetError, StorageError
from core.forecasts.outline import Outline
from core.models.base import find_base
from core.sources.beginnings import MOST_CHARACTERS, Beginning, corpus_of
from core.tokens.conversations import plainly
from core.tokens.encoding import Encoder, all_texts
from core.tokens.tokenizer import CharacterTokenizer, Tokenizer, load_own_tokenizer


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one source; None if there was no time for it, or `error` says why it has none."""

    num_tokens: int | None = None
    is_estimate: bool = False
    error: RatchetError | None = None


class _TooLate(Exception):
    """The time is over."""


@dataclass
class TokenCounter:
    """Counts for one request.

    Args:
        tokenizer: None for characters, of which each source has its own.
        cache: Where runs keep the tokens of large sources.
        seconds: After so many no source is begun, and one that is being read is left.
        most_characters: Read of each source.
    """

    tokenizer: Tokenizer | None
    cache: Path | None
    seconds: float
    most_characters: int = MOST_CHARACTERS

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def count(self, part: Beginning) -> TokenCount:
        """Of one source; `part.num_characters` has to be known, and its hash if what is kept is to be found."""
        try:
            self._check_time()
            kept = self._kept(part)
            if kept is not None:
                return TokenCount(kept)
            encoder = Encoder(self._tokenizer_for(part), meanwhile=self._check_time)
            num_read = len(encoder.tokens(part).stored)
        except _TooLate:
            return TokenCount()
        except StorageError:
            # It is this machine's trouble, and says nothing of the source.
            raise
        except RatchetError as error:
            return TokenCount(error=error)
        return TokenCount(round(num_read * part.scale), part.scale > 1)

    def _kept(self, part: Beginning) -> int | None:
        """As runs have counted them: those that learn prompts, or those that do not."""
        if self.tokenizer is None:
            return None
        for learns_all in (True, False):
            found = Encoder(self.tokenizer, learns_all, self.cache).kept(part)
            if found is not None:
                return len(found.stored)
        return None

    def _tokenizer_for(self, part: Beginning) -> Tokenizer:
        if self.tokenizer is not None:
            return self.tokenizer
        characters: set[str] = set()
        for text in all_texts(corpus_of([part]), plainly, self._check_time):
            characters.update(text)
        return CharacterTokenizer(sorted(characters))

    def _check_time(self) -> None:
        if time.monotonic() - self._began > self.seconds:
            raise _TooLate


def tokenizer_of_base(name: str, models_root: Path) -> Tokenizer:
    """Of a base that is at hand; nothing is fetched for it.

    Raises:
        ConfigError: it is not.
        ModelUnavailable: it cannot be used.
    """
    if not (models_root / name).is_dir() and name not in {found.name for found in models_at_hand(models_root)}:
        said = f"there is no tokenizer '{name}': give 'characters', a model of GET /models, or a checkpoint's name"
        raise ConfigError([("tokenizer", said)])
    return _tokenizer_in(find_base(name, models_root), name)


def tokenizer_of_checkpoint(folder: Path, models_root: Path) -> Tokenizer:
    """Of a checkpoint's model, whose weights are not read.

    Raises:
        CheckpointError: it cannot be used.
        ConfigError, ModelUnavailable: nor can the base that it belongs to.
    """
    config = parse(TrainingConfig, read_manifest(folder).manifest.config)
    if not config.is_pretrained:
        return load_own_tokenizer(folder)
    if config.use_lora:
        return tokenizer_of_base(config.base_model, models_root)
    return _tokenizer_in(folder, config.base_model)


def _tokenizer_in(folder: Path, name: str) -> Tokenizer:
    return Outline(folder, parse(TrainingConfig, {"model_type": "causal_lm", "base_model": name})).tokenizer
