"""The second half of a checkpoint's end: the ledger has marked it, see `jobs.shelf`, and its folder goes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from core.checkpointing import CheckpointStore
from jobs import shelf
from jobs.database import Database
from jobs.errors import LedgerUnavailable

log = logging.getLogger(__name__)


def discard(db: Database, store: CheckpointStore, names: Iterable[str]) -> None:
    """Set the folders of marked checkpoints aside, and note it; what the disk refuses now is left to a later sweep.

    Their files are still to go, which may take its time: `CheckpointStore.sweep_retired`.
    """
    gone = []
    for name in names:
        try:
            store.set_aside(name)
        except OSError as error:
            log.warning("checkpoint %s stays on the disk for now: %s", name, error)
        else:
            gone.append(name)
    try:
        if gone:
            with db.write() as session:
                shelf.set_discarded(session, gone)
    except LedgerUnavailable as error:
        log.warning("a worker will note that checkpoints are gone: %s", error.message)
