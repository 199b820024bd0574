"""Any causal language model of Hugging Face from pretrained weights, trained whole or through low-rank adapters.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import CheckpointMismatch, ModelUnavailable
from core.libraries import import_peft
from core.losses import next_token_loss
from core.models import LanguageModel
from core.models.attention import segment_positions
from core.models.blocks import linear_kinds
from core.models.lora import ALL_LINEAR, adapter_config, adapter_targets, wrap_with_adapters
from core.models.pretrained import load_causal_lm, load_tokenizer
from core.tokens.tokenizer import PretrainedTokenizer, TokenIds

_SCALED_HEADS = (
    *("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"),
    *("logit_scale", "logits_scaling", "lm_head_multiplier"),
)
"""What families call what they do to their logits."""


class CausalLM(LanguageModel):
    """A Hugging Face model with its tokenizer.

    Args:
        base: Folder with `config.json`, safetensors weights and tokenizer files, or with one GGUF file.
        use_lora: Freeze the base and train adapters on linear layers, never on the head.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters is alpha / rank.
        lora_dropout: Dropout before each adapter.
        dropout: Dropout wherever the architecture has one: of embeddings, attention, residuals.
        base_name: What the user calls the base: its last part names checkpoints, and adapters refer to it.
        mapped: Leave the weights where they are read from, for a model that is only asked.
        lora_targets: Which linear layers get adapters, see `core.models.lora.adapter_targets`.
        quantization: As in `TrainingConfig`: of the base, which then takes adapters alone.
        adapters: `use_rslora` and `use_dora`.

    Raises:
        ModelUnavailable: the folder cannot be used.
        ConfigError: `lora_targets` names a layer that is not there, or what quantizes is not installed.
    """

    def __init__(
        self,
        base: Path,
        use_lora: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        dropout: float = 0.0,
        base_name: str | None = None,
        mapped: bool = False,
        lora_targets: str = ALL_LINEAR,
        quantization: str = "none",
        **adapters: bool,
    ) -> None:
        super().__init__()
        model = load_causal_lm(base, dropout, in_four_bits=quantization == "nf4")
        self.vocab_size = int(model.config.vocab_size)
        self.max_context = num_positions(model.config)
        if not mapped:
            _check_causal(model, base)
        if not (mapped or use_lora):
            # What trains is on pages of its own: an update would copy each of the file's anyway, and sums come out to
            # the last bit as they do on memory that torch aligned.
            _own_pages(model)
        model.name_or_path = base_name or str(base)
        self.tokenizer = PretrainedTokenizer(load_tokenizer(base, model.config), self.vocab_size)
        self.use_lora = use_lora
        self.network: Any = model
        if use_lora:
            self.network = with_adapters(model, lora_targets, lora_rank, lora_alpha, lora_dropout, **adapters)
            self.weights_file = "adapter_model.safetensors"
        self.short_name = short_name(base_name or base.name)
        self._told_apart: bool | None = None
        self._plain_head: bool | None = None

    @property
    def name(self) -> str:  # type: ignore[override]  # one class, many names
        """The base's short name, with `_lora` if adapters are trained."""
        return f"{self.short_name}_lora" if self.use_lora else self.short_name

    def encode(self, text: str) -> TokenIds:
        """Ids without special tokens, shape (T,)."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Any) -> str:
        """The text of ids, shape (T,)."""
        return self.tokenizer.decode(ids)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and the loss."""
        logits_BTV = self.network(input_ids=ids_BT, use_cache=False, **_packed(segments_BT)).logits
        return logits_BTV, None if targets_BT is None else next_token_loss(logits_BTV, targets_BT)

    def before_head(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """None for families that scale or bound their logits, as Gemma 2 does."""
        if not self.has_plain_head:
            return None
        model = self.network.get_base_model() if self.use_lora else self.network
        x_BTC = model.base_model(input_ids=ids_BT, use_cache=False, **_packed(segments_BT)).last_hidden_state
        head = model.get_output_embeddings()
        return x_BTC, head.weight, head.bias

    @property
    def has_plain_head(self) -> bool:
        """Whether its logits are those of one linear layer: measured at the first call."""
        if self._plain_head is None:
            self._plain_head = _has_plain_head(self)
        return self._plain_head

    @property
    def supports_segments(self) -> bool:
        """Whether examples that share a row are told apart: measured at the first call, for many a family does not."""
        if self._told_apart is None:
            self._told_apart = _are_told_apart(self)
        return self._told_apart

    def without_adapters(self) -> AbstractContextManager[Any]:
        """Inside it, the model is its base."""
        left_out: AbstractContextManager[Any] = self.network.disable_adapter()
        return left_out

    def predict(self, ids_BT: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) of the next token; the cache is transformers' own."""
        said = self.network(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return said.logits[:, -1], said.past_key_values

    def tensors(self) -> dict[str, Tensor]:
        """The adapters alone, or all weights with the tied head left out, under Hugging Face's own names."""
        if self.use_lora:
            # Left to itself, peft asks the hub whether the base has grown tokens; none here ever does.
            return dict(import_peft().get_peft_model_state_dict(self.network, save_embedding_layers=False))
        tied = set(self.network.all_tied_weights_keys)
        return {name: tensor for name, tensor in self.network.state_dict().items() if name not in tied}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The adapters, or all weights."""
        expected = self.tensors()
        wrong = sorted(set(expected) ^ set(tensors)) or [
            name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
        ]
        if wrong:
            raise CheckpointMismatch(f"the weights are not of this model's shape: {', '.join(wrong[:5])}")
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)

    def merge(self) -> None:
        """Add the adapters to the weights they were trained on: from here on this is a plain model."""
        self.network = self.network.merge_and_unload()
        self.use_lora = False
        self.weights_file = "model.safetensors"

    def describe(self, folder: Path) -> None:
        """Write `adapter_config.json`, or the model's `config.json`."""
        if self.use_lora:
            self.network.peft_config["default"].save_pretrained(folder)
            path = folder / "adapter_config.json"
            said = json.loads(path.read_text())
            # peft keeps them in a set, whose order is another one in every process.
            path.write_text(json.dumps({**said, "target_modules": sorted(said["target_modules"])}, indent=2))
        else:
            self.network.config.save_pretrained(folder)


def short_name(base_name: str) -> str:
    """A base's name as checkpoint names carry it: the last part of a hub's name or of a path."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(base_name).name).strip("-")[:60] or "causal-lm"


def num_positions(config: Any) -> int:
    """Most tokens that it can see; families without a bound of their own are given a far one."""
    said = getattr(config, "max_position_embeddings", None)
    return int(said) if isinstance(said, int) and said > 0 else 1 << 20


def _check_causal(model: Any, folder: Path) -> None:
    """A model that sees what it is to foretell learns nothing: some architectures look back alone only if asked to."""
    ids_BT = torch.tensor([[1, 2, 3, 1], [1, 2, 3, 0]]) % model.config.vocab_size
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        one_TV, other_TV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    model.train(was_training)
    # Far more than rounding, far less than what one token tells of another.
    if (one_TV - other_TV).abs().max() > 1e-4 * one_TV.abs().max():
        raise ModelUnavailable(
            f"the folder '{folder.name}' is no causal language model: what it says of a token depends on later ones",
            field="base_model",
        )


def _are_told_apart(model: CausalLM) -> bool:
    """Compare what is said of a row of three examples with what is said of each alone.

    Some families make masks of their own that know nothing of positions, or hand a state on from token to token.
    """
    device = next(model.parameters()).device
    examples = [torch.tensor([ids], device=device) % model.vocab_size for ids in ([1, 2, 3], [4], [2, 1, 3, 4])]
    segments_BT = torch.cat([torch.full_like(ids_BT, number) for number, ids_BT in enumerate(examples)], dim=1)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            together_BTV, _ = model(torch.cat(examples, dim=1), segments_BT=segments_BT)
            alone_BTV = torch.cat([model(ids_BT)[0] for ids_BT in examples], dim=1)
    except (TypeError, ValueError, RuntimeError, IndexError):
        # Of a family that cannot be told positions at all.
        return False
    finally:
        model.train(was_training)
    return bool((together_BTV - alone_BTV).abs().max() <= 1e-4 * alone_BTV.abs().max())


def says_scaled_head(config: Any) -> bool:
    """Whether a family's configuration says that it scales or bounds its logits."""
    return any(getattr(config, name, None) for name in _SCALED_HEADS)


def _has_plain_head(model: CausalLM) -> bool:
    """Compare what is said of a few tokens with what its last linear layer alone makes of them.

    A bound far above the logits of fresh weights would not show, so what the configuration says counts, too.
    """
    if says_scaled_head(model.network.config):
        return False
    model._plain_head = True
    ids_BT = torch.tensor([[1, 2, 3]], device=next(model.parameters()).device) % model.vocab_size
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(ids_BT.device.type, enabled=False):
            head = model.before_head(ids_BT)
            assert head is not None
            x_BTC, weight_VC, bias_V = head
            return torch.allclose(model(ids_BT)[0], F.linear(x_BTC, weight_VC, bias_V), rtol=1e-5, atol=1e-6)
    except (AttributeError, TypeError, RuntimeError):
        # Of a family that is put together otherwise.
        return False
    finally:
        model.train(was_training)


def _packed(segments_BT: Tensor | None) -> dict[str, Tensor]:
    """Where positions begin anew, transformers begins another example: its masks are made of them."""
    return {} if segments_BT is None else {"position_ids": segment_positions(segments_BT)}


def _own_pages(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def with_adapters(model: Any, targets: str, rank: int, alpha: float, dropout: float, **more: bool) -> Any:
    """A Hugging Face model as a `peft.PeftModel`, its own weights frozen; `targets` as in `CausalLM`.

    Raises:
        ConfigError: they name a layer that is not there.
    """
    head = model.get_output_embeddings()
    # Not peft's "all-linear": that takes experts, too, which cannot have dropout before their adapters.
    linear = {
        name: part for name, part in model.named_modules() if isinstance(part, linear_kinds()) and part is not head
    }
    # GPT-2 and its kin keep their matrices as (in, out); peft asks to be told.
    inputs_first = any(not isinstance(part, torch.nn.Linear) for part in linear.values())
    config = adapter_config(
        adapter_targets(linear, targets),
        rank,
        alpha,
        dropout,
        **more,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
        fan_in_fan_out=inputs_first,
    )
    adapted = wrap_with_adapters(model, config)
    # Whoever reads it has the base as it is, not in four bits.
    were_first = any(getattr(part, "inputs_first", False) for part in linear.values())
    adapted.peft_config["default"].fan_in_fan_out = inputs_first or were_first
    return adapted
