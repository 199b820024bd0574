"""Everything a run must not forget, captured at a step boundary and put back: the one list of what survives a restart.

| what | where in a checkpoint |
| --- | --- |
| weights | `model.safetensors`, or `adapter_model.safetensors` |
| optimizer moments | `optimizer.safetensors`, keys `<parameter>::<moment>` |
| optimizer settings, step, fp16's scale, RNG states of every rank | `state.json` |
| loss history | `history.safetensors` |
| averages of the weights | `ema.safetensors` |
| tokenizer, model configuration | their own files |

The data position is the step itself, see `core.data`, and so is the place in an accumulation, which never spans two
steps; the learning rate is a function of it and of how long the warm-up is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from core.checkpoints.manifest import Checkpoint
from core.checkpoints.state_file import (
    BYTES_OF_EVALUATION,
    HISTORY_FILE,
    STATE_FILE,
    Generators,
    first_complaint,
    history,
    read_state,
)
from core.checkpoints.weights import load_tensors
from core.config import PRETRAINED
from core.errors import CheckpointCorrupt, StorageError
from core.machine.disk import unreadable
from core.models import LanguageModel
from core.optimization.averaging import AVERAGES_FILE, Averages
from core.optimization.moments import optimizer_state
from core.tokens.tokenizer import Tokenizer, load_own_tokenizer

OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(slots=True)
class RunState:
    """Where a run is. `step` counts the optimizer updates made, over all the runs of a lineage."""

    step: int = 0
    end_step: int = 0
    tokens_seen: int = 0
    initial_train_loss: float | None = None
    last_checkpoint_train_loss: float | None = None
    num_parts: int = 1
    """In how many parts each batch is computed, so that it fits into memory; the same on all ranks."""
    num_rising: int | None = None
    """The updates of the warm-up, settled when the run began; None where an earlier release began it."""
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, content: CheckpointContent) -> RunState:
        """Where a checkpoint stands."""
        return cls(**{**content["run"], "step": content["step"]})

    def without_history(self) -> dict[str, Any]:
        """Everything but the evaluations, as plain values."""
        said = asdict(replace(self, evaluations=[]))
        del said["evaluations"]
        return said

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
    tokenizer: Tokenizer | None
    averages: dict[str, Tensor]
    source_sha256: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's whole state in memory that training no longer touches, ready to be written."""

    weights_file: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averages: dict[str, Tensor]
    evaluations: list[dict[str, float]]
    plain: dict[str, Any]
    model: LanguageModel
    tokenizer: Tokenizer

    @property
    def size_bytes(self) -> int:
        """What its tensors take on the disk, which is nearly all of it."""
        tensors = [*self.weights.values(), *self.optimizer.values(), *self.averages.values()]
        return sum(tensor.nbytes for tensor in tensors) + BYTES_OF_EVALUATION * len(self.evaluations)

    def write(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Write every file of a checkpoint but its manifest; `meanwhile` is called after each large one.

        Raises:
            StorageError: what was written does not read back as it was.
        """
        self._write_tensors(folder / self.weights_file, self.weights, meanwhile)
        self._write_tensors(folder / OPTIMIZER_FILE, self.optimizer, meanwhile)
        self._write_tensors(folder / HISTORY_FILE, history(self.evaluations), meanwhile)
        if self.averages:
            self._write_tensors(folder / AVERAGES_FILE, self.averages, meanwhile)
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
    averages: Averages | None = None,
) -> Snapshot:
    """Copy a run's state to host memory.

    Args:
        rng: Of each rank, see `rng_states`; None where nobody knows it.
        scale: See `core.optimization.precision`.
        averages: If the run keeps some.
    """
    moments, settings = optimizer_state(optimizer, model)
    return Snapshot(
        weights_file=model.weights_file,
        weights={name: _copied(tensor) for name, tensor in model.tensors().items()},
        optimizer={name: _copied(tensor) for name, tensor in moments.items()},
        averages={name: _copied(tensor) for name, tensor in averages.tensors().items()} if averages else {},
        # What the list has in it never changes, and copying each would hold up the loop.
        evaluations=list(run.evaluations),
        plain={
            "run": run.without_history(),
            "optimizer": settings,
            "scale": scale or {},
            "rng": rng[0],
            "rng_of_others": list(rng[1:]),
        },
        model=model,
        tokenizer=tokenizer,
    )


def read(checkpoint: Checkpoint, device: str) -> CheckpointContent:
    """The content of a verified checkpoint folder.

    Raises:
        CheckpointCorrupt, CheckpointUnsafe, StorageError: said in one sentence.
    """
    manifest, folder = checkpoint.manifest, checkpoint.path
    try:
        plain = read_state(folder, manifest)
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
            # A base's own tokenizer is read with the base.
            tokenizer=None if manifest.config.get("model_type") in PRETRAINED else load_own_tokenizer(folder),
            averages=load_tensors(folder / AVERAGES_FILE, device) if AVERAGES_FILE in manifest.files else {},
            source_sha256=manifest.hashes.get("source"),
        )
    except OSError as error:
        raise unreadable(error, f"checkpoint '{manifest.name}' cannot be read") from None
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise CheckpointCorrupt(f"checkpoint '{manifest.name}' cannot be read: {error!r}") from None
    return content


def let_go(content: CheckpointContent) -> None:
    """Of a checkpoint's tensors, once they are in the model: while they are mapped, a removed file keeps its room."""
    content["model_state_dict"].clear()
    content["averages"].clear()
    content["optimizer_state_dict"] = None


def rng_states(device: str = "cpu") -> dict[str, Any]:
    """The state of every random number generator a run on `device` may draw from, as plain JSON values."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state()),
    }
    # Of its own GPU alone: the run may go on from here on another one.
    if device.startswith("cuda"):
        states["cuda"] = _hex(torch.cuda.get_rng_state(device))
    if device.startswith("mps"):
        states["mps"] = _hex(torch.mps.get_rng_state())
    return states


def restore_rng(states: dict[str, Any], device: str = "cpu") -> None:
    """Put every generator back, that of the GPU onto `device`; one of another kind of device is left out.

    Raises:
        CheckpointCorrupt: these are no states.
    """
    try:
        saved = Generators.model_validate(states)
        version, words, gauss = saved.python
        random.setstate((version, tuple(words), gauss))
        keys, position, has_gauss, cached = saved.numpy
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(_unhex(saved.torch))
        if saved.cuda and device.startswith("cuda"):
            torch.cuda.set_rng_state(_unhex(_of_gpu(saved.cuda, device)), device)
        if saved.mps and device.startswith("mps"):
            torch.mps.set_rng_state(_unhex(saved.mps))
    except ValidationError as error:
        raise _no_states(first_complaint(error)) from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise _no_states(str(error).partition("\n")[0][:200]) from None


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


def _of_gpu(saved: str | list[str], device: str) -> str:
    """The first releases kept those of all GPUs, by index."""
    if isinstance(saved, str):
        return saved
    index = torch.device(device).index or 0
    return saved[index if index < len(saved) else 0]


def _no_states(why: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"the checkpoint's random number generators cannot be restored: {why}")


def _hex(state: Tensor) -> str:
    return bytes(state.cpu().numpy()).hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
