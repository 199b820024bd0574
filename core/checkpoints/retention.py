"""Which of a run's checkpoints are kept: one rule for the disk of a script and for the ledger of the service. Light."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Kept(Protocol):
    """What the rule looks at."""

    @property
    def step(self) -> int:
        """Optimizer updates made."""

    @property
    def created_at(self) -> float:
        """Unix seconds."""

    @property
    def val_loss(self) -> float | None:
        """In nats per token, if it was measured at this step."""

    @property
    def pinned(self) -> bool:
        """Whether a person asked for it to stay."""


Item = TypeVar("Item", bound=Kept)


def superseded(run: Iterable[Item], keep: int) -> list[Item]:
    """Those of one run's checkpoints that may go.

    The latest `keep` stay, the final one therefore among them; so do the one with the lowest validation loss, of equals
    the later one, and those that are pinned.

    Args:
        run: All that are left of a run, in any order.
        keep: 0 keeps all.
    """
    latest_first = sorted(run, key=lambda item: (item.step, item.created_at), reverse=True)
    measured = [item for item in latest_first if item.val_loss is not None]
    best = min(measured, key=lambda item: item.val_loss or 0.0, default=None)
    return [item for item in latest_first[keep:] if keep and item is not best and not item.pinned]
