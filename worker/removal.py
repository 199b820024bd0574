"""The second half of a checkpoint's end: the ledger has marked it, see `jobs.shelf`, and its folder goes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from core.checkpointing import CheckpointStore
from jobs import shelf
from jobs.database import Database

log = logging.getLogger(__name__)


def discard(store: CheckpointStore, names: Iterable[str]) -> None:
    """Remove the folders of marked checkpoints; what the disk refuses now is left to a later sweep."""
    for name in names:
        try:
            store.retire(name)
        except OSError as error:
            log.warning("checkpoint %s stays on the disk for now: %s", name, error)


def sweep(db: Database, store: CheckpointStore) -> None:
    """Finish what a process did not come to that was killed between the mark and the removal.

    Raises:
        LedgerUnavailable: see `Database.read`.
    """
    on_disk = [folder.name for folder in store.root.glob("checkpoint_*")]
    with db.read() as session:
        marked = shelf.removed_names(session, on_disk)
    discard(store, sorted(marked))
    store.sweep_retired()
