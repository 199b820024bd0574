"""What is trained: an architecture or a base, and which of its weights."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

ModelType = Literal["gpt2", "from_scratch", "causal_lm"]

PRETRAINED = frozenset({"gpt2", "causal_lm"})
"""Model types that start from a base's weights and tokenizer."""

NONE_GIVEN = ""
"""A base model that nobody has named."""

MAX_NAME_BYTES = 255
"""Of a file or folder, on every file system there is."""


class ModelSettings(BaseModel):
    """The model, its tokens, its adapters."""

    model_type: ModelType = Field(
        "from_scratch",
        description="`from_scratch`, `gpt2`, or `causal_lm` for any other pretrained model.",
    )
    base_model: str = Field(
        "gpt2",
        min_length=1,
        max_length=1024,
        description="For pretrained models: a hub name or a local folder with weights and tokenizer.",
    )
    tokenizer: Literal["characters", "bpe"] = Field(
        "characters", description="Of a from-scratch model: one token for each character, or byte-level BPE."
    )
    bpe_vocab_size: int = Field(
        4096, ge=258, le=1_000_000, description="Most tokens of a `bpe` tokenizer; it is trained on the source."
    )
    architecture: Literal["classic", "modern"] = Field(
        "classic",
        description="Of a from-scratch model: learned positions and GELU, or rotary ones, RMSNorm and a gated MLP.",
    )
    activation: Literal["swiglu", "relu2"] = Field("swiglu", description="Of a `modern` model's MLP.")
    qk_norm: bool = Field(True, description="In a `modern` model, normalize queries and keys.")
    tie_embeddings: bool = Field(True, description="In a `modern` model, one matrix reads tokens and writes them.")
    n_embd: int = Field(128, ge=1, le=16_384, description="Width of a from-scratch model.")
    n_head: int = Field(4, ge=1, le=256, description="Attention heads of a from-scratch model.")
    n_layer: int = Field(4, ge=1, le=256, description="Blocks of a from-scratch model.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the model.")
    freeze_layers: int = Field(
        0, ge=0, le=10_000, description="The first blocks, and what is below them, that do not train."
    )
    use_lora: bool = Field(False, description="Train low-rank adapters, not the whole model.")
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the adapters.")
    lora_alpha: float = Field(16.0, gt=0, le=65536, description="Scale: alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each adapter.")
    lora_targets: str = Field(
        "all-linear",
        min_length=1,
        max_length=1000,
        description="Layers that get adapters: `all-linear`, or names separated by commas (`q_proj,v_proj`).",
    )
    use_rslora: bool = Field(False, description="Scale adapters by alpha / √rank.")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="Of the base below adapters: `nf4` keeps the matrices of its blocks in 4 bits each number."
    )
    use_dora: bool = Field(False, description="Adapters with a magnitude of their own (DoRA).")

    @field_validator("base_model", mode="before")
    @classmethod
    def _say_which_model(cls, base_model: Any) -> Any:
        if base_model == NONE_GIVEN:
            raise ValueError("model_type 'causal_lm' needs one: the name of a model on the hub, or of a local folder")
        return base_model

    @field_validator("base_model")
    @classmethod
    def _could_be_a_folder(cls, base_model: str) -> str:
        longest = max(len(os.fsencode(part)) for part in base_model.split("/"))
        if longest > MAX_NAME_BYTES:
            raise ValueError(f"no folder has a name of {longest} bytes: {MAX_NAME_BYTES} is the most")
        return base_model

    @field_validator("n_head")
    @classmethod
    def _heads_share_the_width(cls, n_head: int, info: ValidationInfo) -> int:
        n_embd = info.data.get("n_embd")
        if info.data.get("model_type") != "from_scratch" or not n_embd:
            return n_head
        if n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) must be divisible by n_head ({n_head}): each head gets an equal share")
        if info.data.get("architecture") == "modern" and n_embd // n_head % 2:
            raise ValueError(f"a modern model's heads are of even width, and {n_embd} / {n_head} is odd")
        return n_head

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from a base's weights and tokenizer."""
        return self.model_type in PRETRAINED
