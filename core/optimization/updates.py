"""What trains, by which rule, and how far one update may go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from core.config import TrainingConfig
from core.errors import ConfigError, DeviceUnavailable
from core.libraries import import_bitsandbytes
from core.models import LanguageModel
from core.models.blocks import blocks_of, linear_kinds
from core.optimization.fused_adamw import FusedAdamW
from core.optimization.muon import Muon
from core.optimization.schedules import learning_rate_factor

CLIP_FULL = 1.0
CLIP_LORA = 2.0

_EIGHT_BIT_UPDATE = "bitsandbytes::optimizer_update_8bit_blockwise"


class Together(torch.optim.Optimizer):
    """Several optimizers, each of its own parameters, behind the face of one.

    The groups are theirs, and what they remember is in one place, so whoever changes a rate, undoes a scale or puts a
    moment back need not know of them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of each."""
        assert closure is None
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Older scripts knew one optimizer alone.

        Raises:
            ValueError: always.
        """
        raise ValueError("it is of another kind of optimizer")


def build_optimizer(config: TrainingConfig, model: LanguageModel) -> torch.optim.Optimizer:
    """The optimizer of all parameters that train: with LoRA the adapters' (and whatever else was left free), else all.

    Each of its groups has `initial_lr`, its peak rate.

    Raises:
        ConfigError, DeviceUnavailable: nothing trains, or not by this rule on this machine.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError([("freeze_layers", "nothing is left to train: freeze fewer layers")])
    if config.optimizer == "muon":
        return _muon(config, model, trainable)
    if config.optimizer == "adamw_8bit":
        return _adamw(config, trainable, _eight_bit_adamw(trainable[0].device))
    return _adamw(config, trainable)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, end_step: int, num_rising: int | None = None
) -> float:
    """Give every parameter group its rate for the update that follows `step` updates, and return AdamW's."""
    factor = learning_rate_factor(config, step, end_step, num_rising)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return config.learning_rate * factor


def clip_gradients(model: LanguageModel, config: TrainingConfig) -> float:
    """Scale gradients down to the norm that the configuration allows: by default 1.0, with LoRA 2.0; 0 is for any.

    Returns:
        The norm before, which is measured in any case.
    """
    limit = config.max_grad_norm
    if limit is None:
        limit = CLIP_LORA if config.use_lora else CLIP_FULL
    found = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in found if parameter.grad is not None])
    if limit:
        clip_grads_with_norm_(found, limit, norm)
    return float(norm)


def freeze(model: nn.Module, num_layers: int) -> None:
    """Leave the first blocks of a model, and what is below them, as they are; none if `num_layers` is 0.

    A head that is tied to the embeddings is one of them.

    Raises:
        ConfigError: the model has not that many blocks.
    """
    if not num_layers:
        return
    blocks = blocks_of(model)
    if num_layers > len(blocks):
        raise ConfigError([("freeze_layers", f"the model has {len(blocks)} layers, so {num_layers} cannot be frozen")])
    within = {id(module) for module in blocks.modules()}
    for name, module in model.named_modules():
        if id(module) not in within and _is_embedding(name, module):
            module.requires_grad_(False)
    for block in blocks[:num_layers]:
        block.requires_grad_(False)


def _is_embedding(name: str, module: nn.Module) -> bool:
    """A norm of embeddings counts as one; a matrix with that name is a head."""
    if isinstance(module, nn.Embedding):
        return True
    return "embed" in name.rpartition(".")[2] and not isinstance(module, nn.Linear) and not any(module.children())


def _adamw(
    config: TrainingConfig, parameters: list[nn.Parameter], kind: type[torch.optim.AdamW] = FusedAdamW
) -> torch.optim.Optimizer:
    # beta2 is 0.99 by default: runs here are hundreds of steps, and a memory of a thousand would never warm up.
    return kind(
        [{"params": parameters, "initial_lr": config.learning_rate}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def _muon(config: TrainingConfig, model: LanguageModel, trainable: list[nn.Parameter]) -> Together:
    """Muon for the matrices of blocks; AdamW for vectors, and for embeddings and the head, whose rows are tokens.

    Adapters are AdamW's, too, so with LoRA there is nothing for Muon: what acts is the product of their two matrices,
    and that the updates of both are orthogonal says nothing of its own.
    """
    matrices = [] if config.use_lora else list(_matrices(model, _linear_kinds(config)))
    if not matrices:
        said = "'muon' updates the matrices of a model's blocks, and none of them trains here: use 'adamw'"
        raise ConfigError([("optimizer", said)])
    groups = [
        {"params": found, "inputs_first": inputs_first, "initial_lr": config.muon_learning_rate}
        for inputs_first in (False, True)
        if (found := [matrix for matrix, is_so in matrices if is_so is inputs_first])
    ]
    taken = {id(matrix) for matrix, _ in matrices}
    others = [parameter for parameter in trainable if id(parameter) not in taken]
    muon = Muon(groups, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return Together([muon, _adamw(config, others)] if others else [muon])


def _matrices(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each matrix of the blocks that trains, and whether it is kept as (in, out)."""
    for module in blocks_of(model).modules():
        if isinstance(module, kinds):
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            if weight.requires_grad:
                yield weight, not isinstance(module, nn.Linear)


def _linear_kinds(config: TrainingConfig) -> tuple[type[nn.Module], ...]:
    return linear_kinds() if config.is_pretrained else (nn.Linear,)


def _eight_bit_adamw(device: torch.device) -> Any:
    """AdamW that keeps its moments in 8 bits.

    Raises:
        DeviceUnavailable: it has no kernels for this device.
        ConfigError: it is not installed.
    """
    library = import_bitsandbytes("optimizer", "adamw_8bit", "adamw")
    # What it says of devices in words is true of something in it, but not of all.
    if not torch._C._dispatch_has_kernel_for_dispatch_key(_EIGHT_BIT_UPDATE, device.type.upper()):
        said = f"optimizer 'adamw_8bit' has no kernels for {device.type}, and this run is on it: use 'adamw'"
        raise DeviceUnavailable(said, field="optimizer")
    return library.optim.AdamW8bit
