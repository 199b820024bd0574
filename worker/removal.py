"""Tidying the disk up after processes that were killed, and after checkpoints that are gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from core.checkpointing import CheckpointStore
from jobs import shelf
from jobs.database import Database
from jobs.removal import discard

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 240
"""A longer name has no room for what is put before it when its folder is set aside."""


def sweep(db: Database, store: CheckpointStore) -> set[str]:
    """Finish what a process did not come to that was killed between the mark and the removal, or while it saved.

    Returns:
        Names of checkpoints whose removal was done, and whose folders are there again: somebody has put them back.

    Raises:
        LedgerUnavailable: see `Database.read`.
        OSError: the disk refused it.
    """
    if not store.root.is_dir():  # Its disk may be away, and what is on it is not gone.
        return set()
    with db.read() as session:
        leaving = shelf.leaving_names(session)
    discard(db, store, leaving)
    remove_set_aside(store)
    _beside(store.sweep_abandoned)
    with db.read() as session:
        returned = shelf.removed_names(session, names_on_disk(store))
    return returned - set(leaving)


def names_on_disk(store: CheckpointStore) -> list[str]:
    """Names of folders that may be checkpoints; what no program of ours has named is left alone."""
    return [folder.name for folder in store.root.glob("checkpoint_*") if may_be_ours(folder.name)]


def remove_set_aside(store: CheckpointStore) -> None:
    """Remove the files of what was set aside, beside whoever asks: on some disks a large folder takes its time."""
    _beside(store.sweep_retired)


def _beside(remove: Callable[[], None]) -> None:
    def try_it() -> None:
        try:
            remove()
        except OSError as error:
            log.warning("files of removed checkpoints stay on the disk for now: %s", error)

    try:
        threading.Thread(target=try_it, name="removal", daemon=True).start()
    except RuntimeError as error:  # What Python makes of a kernel that gives no further thread.
        log.warning("files of removed checkpoints stay on the disk for now: %s", error)


def may_be_ours(name: str) -> bool:
    """Whether the ledger can be asked for this name."""
    try:
        return len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False
