"""Folders of models made on the spot: real architectures at a small size, their tokenizer trained on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_WIDE, "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": 64}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {**_LLAMA, "tie_word_embeddings": True},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 16},
    "mistral": {**_LLAMA, "sliding_window": 16},
    "smollm3": _LLAMA,
    "gemma2": {**_LLAMA, "head_dim": 16},
    "phi3": _LLAMA,
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {**_WIDE, "intermediate_size": 64, "max_position_embeddings": 64},
    "opt": {**_WIDE, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}
"""model_type → the settings that make it tiny."""


def make_model_folder(folder: Path, text: str, family: str, **settings: Any) -> Path:
    """Write `config.json`, `model.safetensors` and a byte-level BPE tokenizer; weights are random but seeded."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([text], vocab_size=512, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), **{**special, **FAMILIES.get(family, {}), **settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_gpt2_folder(folder: Path, text: str, *, n_positions: int = 64) -> Path:
    """A GPT-2."""
    return make_model_folder(folder, text, "gpt2", n_positions=n_positions)
