"""The cache in which Hugging Face's library keeps what it has fetched, read without the library. Light.

For each model it has a folder `models--org--name` with the revisions that names like `main` stand for in `refs`, and of
each revision a folder in `snapshots` whose files are links to `blobs`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.errors import RatchetError
from core.machine.outside import read_plain

_REVISION = re.compile(r"[0-9a-f]{40}")


def cache_root(environment: Mapping[str, str] | None = None) -> Path:
    """Where the cache is, by the variables that the library looks at."""
    said = os.environ if environment is None else environment
    if told := said.get("HF_HUB_CACHE") or said.get("HUGGINGFACE_HUB_CACHE"):
        return Path(told).expanduser()
    if home := said.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(said.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_models(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each model of which the revision `main` is there, by name."""
    try:
        folders = sorted(root.glob("models--*"))
    except OSError:
        return
    for folder in folders:
        try:
            revision = read_plain(folder / "refs" / "main", 100).decode("ascii", "replace").strip()
        except RatchetError:
            continue
        snapshot = folder / "snapshots" / revision
        if _REVISION.fullmatch(revision) and snapshot.is_dir():
            yield folder.name.removeprefix("models--").replace("--", "/"), snapshot


def is_own_link(folder: Path, name: str) -> bool:
    """Whether it is a link as the cache has them: `snapshots/<revision>/<name>` → `blobs/<hash>`."""
    path = folder / name
    if folder.parent.name != "snapshots" or not path.is_symlink():
        return False
    return path.resolve().parent == (folder.parent.parent / "blobs").resolve()
