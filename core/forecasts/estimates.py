"""How much memory a step of training needs, found by making one with tensors that have a shape and no memory.

torch plays the step through as it would compute it: the same kernels of attention, the same copies in shorter types,
what is kept for the way back and what is let go. So no formula has to know an architecture, and each new one is known.

Shapes: B batch, T time.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.config import TrainingConfig
from core.models import LanguageModel
from core.objectives import Objective
from core.optimization.precision import Precision
from core.optimization.updates import build_optimizer
from core.tokens.batches import Batch

STEP_COPIES = 2
"""Of the largest weight that trains, which an update of AdamW makes."""

ADAMW_BYTES = 2 * 4
"""What AdamW remembers of each number that trains."""

MUON_BYTES = 4

SMALLEST_IN_8_BITS = 4096
"""Tensors with fewer numbers are remembered as AdamW does it; of others, each block of 256 has two scales."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, on the device that trains, at the moment when a step needs the most; `total` is all but `checkpoint`.

    Args:
        activations: What is computed on the way and kept for the way back, or is needed by an update, whichever is
            more; None if this architecture cannot be played through.
        averages: Of the weights, see `ema_decay`.
        checkpoint: Of the machine's own memory, for the copy that is being written while training goes on.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    averages: int
    checkpoint: int

    @property
    def total(self) -> int | None:
        """All that is there at once."""
        if self.activations is None:
            return None
        return self.weights + self.gradients + self.optimizer + self.activations + self.averages


def memory_of(
    config: TrainingConfig,
    model: LanguageModel,
    objective: Objective,
    batch: Batch,
    reference: LanguageModel | None = None,
) -> Memory:
    """What a run of `config` needs.

    Args:
        model: On the meta device; afterwards it is of no use for anything else.
        objective: What the loss is.
        batch: One as long as any; only its shapes matter.
        reference: A second model that the objective asks, on the meta device, too.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = _bytes_of(model)
    gradients = sum(_bytes(parameter) for parameter in trained)
    optimizer = _moments(config, model)
    averages = sum(4 * parameter.numel() for parameter in trained) if config.ema_decay else 0
    peak = _peak(config, model, objective, batch, reference)
    largest = max((_bytes(parameter) for parameter in trained), default=0)
    kept = 4 * sum(p.numel() for p in (trained if config.use_lora else model.parameters()))
    return Memory(
        weights=weights + (_bytes_of(reference) if reference else 0),
        gradients=gradients,
        optimizer=optimizer,
        activations=None if peak is None else max(peak - gradients, STEP_COPIES * largest),
        averages=averages,
        checkpoint=kept + optimizer + averages if config.enable_checkpoints else 0,
    )


def _moments(config: TrainingConfig, model: LanguageModel) -> int:
    """By the groups of the run's own optimizer, so that which weight is whose is said once."""
    if config.optimizer == "adamw_8bit":
        return sum(_in_8_bits(parameter.numel()) for parameter in model.parameters() if parameter.requires_grad)
    groups = build_optimizer(config, model).param_groups
    return sum(
        (MUON_BYTES if "inputs_first" in group else ADAMW_BYTES) * parameter.numel()
        for group in groups
        for parameter in group["params"]
    )


def _in_8_bits(count: int) -> int:
    return ADAMW_BYTES * count if count < SMALLEST_IN_8_BITS else 2 * (count + 4 * -(-count // 256))


def _peak(
    config: TrainingConfig, model: LanguageModel, objective: Objective, batch: Batch, reference: LanguageModel | None
) -> int | None:
    """Bytes beyond the weights, forward and backward, gradients included."""
    # Both short types are of one length, and the CPU's play needs no scale.
    live = _Live()
    precision = Precision("fp32" if config.precision == "fp32" else "bf16", "cpu")
    try:
        with _quiet(), _experts_of_any_type(config), FakeTensorMode(allow_non_fake_inputs=True):
            for one in (model, reference):
                if one is not None:
                    _give_shapes(one)
            model.train()
            given = Batch(_shape_of(batch.ids_BT), _shape_of(batch.targets_BT), None, batch.num_targets)
            with live:
                for _ in range(min(2, config.gradient_accumulation_steps)):
                    with precision.computing():
                        loss = objective.loss(model, given)
                    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                    del loss
    except Exception:
        # What comes next may depend on numbers, and there are none; each family stumbles in its own way.
        return None
    return live.most + _mask_bytes(batch)


def _mask_bytes(batch: Batch) -> int:
    """Of who may look at whom in packed rows, (B, 1, T, T), once as bits of a byte and once as numbers to add.

    Whether they are made depends on the numbers of positions, so they cannot be played through.
    """
    B, T = batch.ids_BT.shape
    return 0 if batch.segments_BT is None else B * T * T * 5


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what cannot be played through, with its traceback; we say it in a sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


_GROUPED = "_can_use_grouped_mm"


@contextmanager
def _experts_of_any_type(config: TrainingConfig) -> Iterator[None]:
    """All experts of a layer are multiplied at once, with as many rows whichever tokens they get; but shapes of that
    product torch knows in bfloat16 alone. The library's own product, with the same shapes, it knows in every type.
    """
    moe = import_module("transformers.integrations.moe") if config.is_pretrained else None
    # A private name of the library's: where it is gone there is no figure for experts, and still one for all others.
    was = getattr(moe, _GROUPED, None)
    if was is None:
        yield
        return
    setattr(moe, _GROUPED, lambda *_: False)
    try:
        yield
    finally:
        setattr(moe, _GROUPED, was)


def _give_shapes(model: nn.Module) -> None:
    """Turn meta tensors into ones that are of the CPU for all who ask; what is tied stays tied."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(_shape_of(parameter), parameter.requires_grad)
                module._parameters[name] = known[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _shape_of(buffer)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


class _Live(TorchDispatchMode):
    """Counts the bytes that are alive, and the most there ever were, of all that is computed inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.now: int = 0
        self.most: int = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute, and count what came out."""
        given = {id(_storage(tensor)) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and id(_storage(tensor)) not in given:
                self._count(_storage(tensor))
        return found

    def _count(self, storage: Any) -> None:
        key = id(storage)
        if key in self._alive:
            return
        num_bytes = storage.nbytes()
        self.now += num_bytes
        self.most = max(self.most, self.now)

        def gone(_: Any) -> None:
            self.now -= num_bytes
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _bytes_of(model: nn.Module) -> int:
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
