"""GPT-2's architecture at its real size, 124M, with random weights: it costs the same, and what it says is noise."""

from __future__ import annotations

from pathlib import Path


def make_gpt2_124m(folder: Path, text: str) -> Path:
    """Write `config.json`, `model.safetensors` and a byte-level tokenizer trained on `text`."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([text], vocab_size=4096, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    # Ours has none unless it is asked for, so nobody is to pay for it.
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **dropouts)).save_pretrained(folder)
    return folder
