"""A checkpoint that a person named, or, where that one is damaged, the whole one that its run made before. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.checkpointing import CheckpointStore, first_whole, load_checkpoint
from core.checkpoints.manifest import Checkpoint, read_manifest
from core.errors import CheckpointCorrupt, CheckpointError, CheckpointUnsafe

if TYPE_CHECKING:
    from core.state import CheckpointContent

MAX_ANCESTORS = 1000
_NAME = re.compile(r"(?P<run>checkpoint_.+_step)(?P<step>\d{6,})_[0-9a-f]+")


def load_whole(path: Path) -> tuple[CheckpointContent, str | None]:
    """As `load_checkpoint`; in place of one that is damaged, the newest whole one before it.

    Before it are those of its own run with fewer steps, and then the one that its run began at, and so on. Of a
    checkpoint that cannot even say which run it is of, the folder's name tells, if only one run has such names.

    Returns:
        The content, and what the user is to be told if it is not what they named.

    Raises:
        CheckpointNotFound, CheckpointCorrupt, CheckpointUnsafe, StorageError: neither can be had.
    """
    try:
        return load_checkpoint(path), None
    except (CheckpointCorrupt, CheckpointUnsafe) as damage:
        if path.is_file():
            raise
        folder = path.with_suffix("") if path.suffix == ".pt" else path
        found, _ = first_whole(_before(folder), passed_over=(CheckpointCorrupt, CheckpointUnsafe))
        if found is None:
            raise type(damage)(f"{damage.message}, and no whole one before it is there") from None
        return load_checkpoint(found.path), f"{damage.message}; {found.path.name} is taken instead"


def _before(folder: Path) -> Iterator[Checkpoint]:
    """The nearest first."""
    there = sorted(CheckpointStore(folder.parent), key=lambda item: item.step, reverse=True)
    try:
        named: Checkpoint | None = read_manifest(folder)
    except CheckpointError:
        yield from _named_alike(folder.name, there)
        return
    for _ in range(MAX_ANCESTORS):
        if named is None:
            return
        run, step, parent = named.run, named.step, named.manifest.parent
        earlier = [item for item in there if item.run == run and item.step < step]
        yield from earlier
        named = next((item for item in there if item.manifest.id == parent and item not in earlier), None)
        if named is not None:
            yield named


def _named_alike(name: str, there: list[Checkpoint]) -> list[Checkpoint]:
    told = _NAME.fullmatch(name)
    if told is None:
        return []
    alike = [item for item in there if item.path.name.startswith(told["run"]) and item.step < int(told["step"])]
    return alike if len({item.run for item in alike}) == 1 else []
