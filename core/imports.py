"""What a run is going to import, all at once; each library is imported where it is used, so late and bit by bit."""

from __future__ import annotations

from collections.abc import Callable

from core.config import TrainingConfig
from core.libraries import import_bitsandbytes, import_peft
from core.machine.processes import importing


def import_torch(pulse: Callable[[], None] = lambda: None) -> None:
    """Import what every run takes, without touching a GPU.

    Args:
        pulse: Called in between.
    """
    with importing():
        import torch  # noqa: F401  # for its imports alone

        pulse()
        import core.assembly  # noqa: F401  # for its imports alone


def import_transformers() -> None:
    """Import what pretrained models take."""
    with importing():
        from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: F401  # for their imports alone


def import_what_it_takes(config: TrainingConfig) -> None:
    """Import everything for this run."""
    import_torch()
    if config.is_pretrained:
        import_transformers()
    if config.use_lora:
        with importing():
            import_peft()
    if config.quantization != "none":
        with importing():
            import_bitsandbytes("quantization", config.quantization, "none")
    if config.optimizer == "adamw_8bit":
        with importing():
            import_bitsandbytes("optimizer", "adamw_8bit", "adamw")
