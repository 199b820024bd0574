"""When a run has stopped getting better: decided from its evaluations alone, so there is nothing more to save.

An evaluation has `step`, `train_loss` and `val_loss`, see `core.state.RunState`. Light: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Evaluation = Mapping[str, float]


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one with the least validation loss, of equals the first; None if there is none."""
    return min(evaluations, key=lambda evaluation: evaluation["val_loss"], default=None)


def should_stop_early(
    evaluations: Sequence[Evaluation], patience: int, min_delta: float = 0.0, *, since_step: int = 0
) -> bool:
    """Whether the last `patience` evaluations, none of them before `since_step`, were no better than those before.

    Args:
        patience: 0 for never.
        min_delta: By how much a validation loss has to be below the least before it to count as better, in nats.
        since_step: Where this run began, if it goes on from another: what it is measured against includes the
            evaluations of that one, and its patience does not.
    """
    if not patience:
        return False
    least, num_no_better = float("inf"), 0
    for evaluation in evaluations:
        if evaluation["val_loss"] < least - min_delta:
            least, num_no_better = evaluation["val_loss"], 0
        elif evaluation["step"] > since_step:
            num_no_better += 1
    return num_no_better >= patience
