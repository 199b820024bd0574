"""Everything a run must not forget, captured at a step boundary and put back: the one list of what survives a restart.

| what | where in a checkpoint |
| --- | --- |
| weights | `model.safetensors`, or `adapter_model.safetensors` |
| optimizer moments | `optimizer.safetensors`, keys `<parameter>::<moment>` |
| optimizer settings, step, loss history, fp16's scale, RNG states of every rank | `state.json` |
| tokenizer, model configuration | their own files |

The data position is the step itself, see `core.data`, and so is the place in an accumulation, which never spans two
steps; the learning rate is a function of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import CheckpointCorrupt, CheckpointMismatch, StorageError
from core.manifest import Checkpoint
from core.models import LanguageModel
from core.outside import read_plain
from core.tokenizer import CHARACTERS_FILE, Tokenizer, load_characters
from core.weights import load_tensors

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MAX_STATE_BYTES = 64 << 20
"""Half a million evaluations, beside the generators."""
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
    rng: list[dict[str, Any]] | None
    scale: dict[str, Any]
    versions: dict[str, str]
    surroundings: dict[str, str]
    hashes: dict[str, str]
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

    @property
    def size_bytes(self) -> int:
        """What its tensors take on the disk, which is nearly all of it."""
        return sum(tensor.nbytes for tensor in [*self.weights.values(), *self.optimizer.values()])

    def write(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Write every file of a checkpoint but its manifest; `meanwhile` is called after each large one.

        Raises:
            StorageError: what was written does not read back as it was.
        """
        self._write_tensors(folder / self.weights_file, self.weights, meanwhile)
        self._write_tensors(folder / OPTIMIZER_FILE, self.optimizer, meanwhile)
        (folder / STATE_FILE).write_text(json.dumps(self.plain))
        self.model.describe(folder)
        self.tokenizer.save(folder)

    def _write_tensors(self, path: Path, tensors: dict[str, Tensor], meanwhile: Callable[[], object]) -> None:
        """A manifest's hash proves that a file has not changed since; only this proves that it was right."""
        from safetensors.torch import load_file, save_file

        save_file(tensors, path, metadata={"format": "pt"})
        meanwhile()
        written = load_file(path)
        for name, tensor in tensors.items():
            if not _same_bytes(written[name], tensor):
                raise StorageError(
                    f"'{path.name}' of a checkpoint does not read back as it was written: {name} differs"
                )
        meanwhile()


def capture(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    run: RunState,
    *,
    rng: Sequence[dict[str, Any] | None] = (None,),
    scale: dict[str, Any] | None = None,
) -> Snapshot:
    """Copy a run's state to host memory.

    Args:
        rng: Of each rank, see `rng_states`; None where nobody knows it.
        scale: See `core.precision`.
    """
    moments, settings = optimizer_state(optimizer, model)
    return Snapshot(
        weights_file=model.weights_file,
        weights={name: _copied(tensor) for name, tensor in model.tensors().items()},
        optimizer={name: _copied(tensor) for name, tensor in moments.items()},
        plain={
            "run": asdict(run),
            "optimizer": settings,
            "scale": scale or {},
            "rng": rng[0],
            "rng_of_others": list(rng[1:]),
        },
        model=model,
        tokenizer=tokenizer,
    )


def read(checkpoint: Checkpoint, device: str) -> CheckpointContent:
    """The content of a verified checkpoint folder."""
    manifest, folder = checkpoint.manifest, checkpoint.path
    try:
        plain = json.loads(read_plain(folder / STATE_FILE, MAX_STATE_BYTES))
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
            model_state_dict=load_tensors(folder / weights_file, device),
            optimizer_state_dict={
                "moments": load_tensors(folder / OPTIMIZER_FILE, device),
                "settings": plain["optimizer"],
            },
            run=plain["run"],
            rng=[plain["rng"], *plain.get("rng_of_others", [])] if plain["rng"] else None,
            scale=plain.get("scale", {}),
            versions=manifest.versions,
            surroundings=manifest.surroundings,
            hashes=manifest.hashes,
            characters=load_characters(folder).characters if CHARACTERS_FILE in manifest.files else None,
            source_sha256=manifest.hashes.get("source"),
        )
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
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


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """NaN equals itself here."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _hex(state: Tensor) -> str:
    return bytes(state.cpu().numpy()).hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
