"""Everything a run must not forget, captured at a step boundary and put back: the one list of what survives a restart.

| what | where in a checkpoint |
| --- | --- |
| weights | `model.safetensors`, or `adapter_model.safetensors` |
| optimizer moments | `optimizer.safetensors`, keys `<parameter>::<moment>` |
| optimizer settings, step, loss history, RNG states | `state.json` |
| tokenizer, model configuration | their own files |

The data position is the step itself, see `core.data`; the learning rate is a function of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import CheckpointCorrupt, CheckpointMismatch
from core.manifest import Checkpoint
from core.models import LanguageModel
from core.tokenizer import CHARACTERS_FILE, Tokenizer, load_characters

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
_SEPARATOR = "::"


@dataclass(slots=True)
class RunState:
    """Where a run is. `step` counts the optimizer updates made, over all the runs of a lineage."""

    step: int = 0
    end_step: int = 0
    tokens_seen: int = 0
    initial_train_loss: float | None = None
    last_checkpoint_train_loss: float | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, content: CheckpointContent) -> RunState:
        """Where a checkpoint stands."""
        return cls(**{**content["run"], "step": content["step"]})

    @property
    def last_evaluation(self) -> dict[str, float] | None:
        """`step`, `train_loss` and `val_loss` of the newest evaluation."""
        return self.evaluations[-1] if self.evaluations else None


class CheckpointContent(TypedDict):
    """A checkpoint in memory, as `core.checkpointing.load_checkpoint` gives it."""

    path: Path
    id: str | None
    name: str
    step: int
    end_step: int
    config: dict[str, Any]
    model_state_dict: dict[str, Tensor]
    optimizer_state_dict: Any
    run: dict[str, Any]
    rng: dict[str, Any] | None
    characters: list[str] | None
    source_sha256: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's whole state in memory that training no longer touches, ready to be written."""

    weights_file: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    plain: dict[str, Any]
    model: LanguageModel
    tokenizer: Tokenizer

    def write(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Write every file of a checkpoint but its manifest; `meanwhile` is called after each large one."""
        from safetensors.torch import save_file

        save_file(self.weights, folder / self.weights_file, metadata={"format": "pt"})
        meanwhile()
        save_file(self.optimizer, folder / OPTIMIZER_FILE)
        meanwhile()
        (folder / STATE_FILE).write_text(json.dumps(self.plain))
        self.model.describe(folder)
        self.tokenizer.save(folder)


def capture(model: LanguageModel, optimizer: torch.optim.Optimizer, tokenizer: Tokenizer, run: RunState) -> Snapshot:
    """Copy the run's state to host memory."""
    moments, settings = optimizer_state(optimizer, model)
    return Snapshot(
        weights_file=model.weights_file,
        weights={name: _copied(tensor) for name, tensor in model.tensors().items()},
        optimizer={name: _copied(tensor) for name, tensor in moments.items()},
        plain={"run": asdict(run), "optimizer": settings, "rng": rng_states()},
        model=model,
        tokenizer=tokenizer,
    )


def read(checkpoint: Checkpoint, device: str) -> CheckpointContent:
    """The content of a verified checkpoint folder."""
    manifest, folder = checkpoint.manifest, checkpoint.path
    try:
        plain = json.loads((folder / STATE_FILE).read_text())
        weights_file = next(
            name for name in ("model.safetensors", "adapter_model.safetensors") if name in manifest.files
        )
        content = CheckpointContent(
            path=folder,
            id=manifest.id,
            name=manifest.name,
            step=manifest.step,
            end_step=manifest.end_step,
            config=manifest.config,
            model_state_dict=_load_tensors(folder / weights_file, device),
            optimizer_state_dict={
                "moments": _load_tensors(folder / OPTIMIZER_FILE, device),
                "settings": plain["optimizer"],
            },
            run=plain["run"],
            rng=plain["rng"],
            characters=load_characters(folder).characters if CHARACTERS_FILE in manifest.files else None,
            source_sha256=manifest.hashes.get("source"),
        )
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise CheckpointCorrupt(f"checkpoint '{manifest.name}' cannot be read: {error!r}") from None
    return content


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Moments by parameter name, and each group's settings with the names of its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    settings = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "names": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return moments, settings


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Put moments back; the settings stay as the configuration made them, so that overrides hold.

    Raises:
        CheckpointMismatch: other parameters are trained than were saved.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    if trained != [name for group in saved["settings"] for name in group["names"]]:
        raise CheckpointMismatch("the checkpoint's optimizer trained other parameters than this run would")
    parameters = dict(model.named_parameters())
    for key, value in saved["moments"].items():
        name, moment = key.rsplit(_SEPARATOR, 1)
        # AdamW's step count lives on the host unless it is fused, whatever device the moments are on.
        place = value.device if value.dim() == 0 else parameters[name].device
        optimizer.state[parameters[name]][moment] = value.to(place).clone()


def rng_states() -> dict[str, Any]:
    """The state of every random number generator a run may draw from, as plain JSON values."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_hex(state) for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        states["mps"] = _hex(torch.mps.get_rng_state())
    return states


def restore_rng(states: dict[str, Any]) -> None:
    """Put every generator back; a device that is not here is left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unhex(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_unhex(state) for state in states["cuda"][: torch.cuda.device_count()]])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_unhex(states["mps"]))


def seed_everything(seed: int) -> None:
    """Start every generator from one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _load_tensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device=device))
    except SafetensorError as error:
        raise CheckpointCorrupt(f"'{path.parent.name}/{path.name}' is no valid safetensors file: {error}") from None


def _hex(state: Tensor) -> str:
    return bytes(state.cpu().numpy()).hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
