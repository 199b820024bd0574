"""Where a base model's weights are: a local folder, the Hugging Face cache, or, within seconds, the hub.

transformers would look for minutes when the network is gone; a user at a terminal should know within five seconds.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from core.bases.gguf_file import is_gguf_folder
from core.errors import ModelUnavailable

PROBE_SECONDS = 3.0
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
TEMPLATE_FILE = "chat_template.jinja"

_LOOKED_AGAIN: set[Path] = set()
"""Snapshots whose template this process has asked the hub for: it may take seconds to hear that there is no hub."""


def find_base(name: str, models_root: Path | None = None) -> Path:
    """The folder of the base model called `name`.

    Args:
        name: A folder, or a hub name such as `gpt2` or `org/model`.
        models_root: Where a worker looks for folders. With one, `name` is what a request said: it is looked for below
            the root and nowhere else, but for an absolute path, which the service lets through from its operator alone.

    Raises:
        ModelUnavailable: says what was looked for, where, and the two ways out.
    """
    folder = models_root / name if models_root else Path(name)
    if models_root and ".." in Path(name).parts:
        raise ModelUnavailable(f"base model '{name}' leads out of the models root", field="base_model")
    if _is_there(folder):
        return _checked(folder)
    cached = _from_hub(name, local=True)
    if cached:
        _complete(name, cached)
        return cached
    reason = _hub_unreachable()
    if reason is None:
        fetched = _from_hub(name, local=False)
        if fetched:
            return fetched
        reason = "the hub has no such model, or did not give it"
    raise _unavailable(name, folder.absolute(), reason)


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # A name longer than a path may be.
        return False


def _checked(folder: Path) -> Path:
    if is_gguf_folder(folder):
        return folder
    missing = [
        what
        for what, pattern in {"config.json": "config.json", "*.safetensors": "*.safetensors"}.items()
        if not any(folder.glob(pattern))
    ]
    if missing:
        raise ModelUnavailable(f"the folder '{folder}' is no base model: it has no {' and no '.join(missing)}")
    return folder


def _from_hub(name: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, local_files_only=local, allow_patterns=FILES, etag_timeout=PROBE_SECONDS)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    folder = Path(found)
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _complete(name: str, snapshot: Path) -> None:
    """Fetch the chat template that a snapshot in the cache lacks, if it has one and the hub can be asked.

    Most are in a file of their own, which not everything that fills the cache asks for. The cache remembers what a
    commit of a model does not have, so the hub is asked once.
    """
    if snapshot in _LOOKED_AGAIN or (snapshot / TEMPLATE_FILE).is_file() or _has_template_inside(snapshot):
        return
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    _LOOKED_AGAIN.add(snapshot)
    if try_to_load_from_cache(name, TEMPLATE_FILE, revision=snapshot.name) is not None or _hub_unreachable():
        return
    with suppress(HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        hf_hub_download(name, TEMPLATE_FILE, revision=snapshot.name, etag_timeout=PROBE_SECONDS)


def _has_template_inside(snapshot: Path) -> bool:
    """Where older releases of the library wrote it."""
    try:
        return b'"chat_template"' in (snapshot / "tokenizer_config.json").read_bytes()
    except OSError:
        return False


def _hub_unreachable() -> str | None:
    """Why the hub cannot be asked, or None. A name look-up has no time limit of its own, hence the thread."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(constants.ENDPOINT)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    failures = ["no answer"]

    def probe() -> None:
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), timeout=PROBE_SECONDS).close()
            failures.clear()
        except OSError as error:
            failures[0] = error.strerror or str(error)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return f"{address.hostname} cannot be reached ({failures[0]})" if failures else None


def _unavailable(name: str, folder: Path, reason: str) -> ModelUnavailable:
    from huggingface_hub import constants

    return ModelUnavailable(
        f"base model '{name}' cannot be had: no folder '{folder}', nothing in the cache {constants.HF_HUB_CACHE}, "
        f"and {reason}. Either put a folder with config.json, model.safetensors and the tokenizer's files there (a "
        f"script takes any: BASE_MODEL=/path/to/folder), or fetch it once where there is a network: hf download {name}",
        field="base_model",
    )
