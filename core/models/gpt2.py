"""GPT-2, under the names that its checkpoints have always had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.models.causal_lm import CausalLM
from core.models.folder import unusable
from core.models.pretrained import family_of


class GPT2Wrapper(CausalLM):
    """A `CausalLM` that is a GPT-2: checkpoints are called `gpt2` or `gpt2_lora`, whatever the base's folder is called.

    Raises:
        ModelUnavailable: the folder cannot be used, or holds another architecture.
    """

    def __init__(self, base: Path, *args: Any, **settings: Any) -> None:
        family = family_of(base)
        if family != "gpt2":
            raise unusable(base, f"its config.json says model_type {family!r}: train it with model_type 'causal_lm'")
        super().__init__(base, *args, **settings)
        self.short_name = "gpt2"
