"""Checkpoints of the releases that learnt every source as plain text, whatever its name. Light.

They go on in text alone: the rows of the same file are other tokens, in another order, and none of what the optimizer
and the data position stand on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import CheckpointMismatch
from core.sources.rows import SourceFormat, format_of

_NEWER = "method"
"""A setting that came with rows."""


def check_still_text(saved: Mapping[str, Any], sources: Iterable[str]) -> None:
    """Refuse to go on in rows what began in text.

    Args:
        saved: The configuration as the checkpoint has it, without any defaults of today.
        sources: Names of what is learnt from here on.

    Raises:
        CheckpointMismatch: says how the run can go on.
    """
    if _NEWER in saved:
        return
    for source in sources:
        if format_of(source) is not SourceFormat.TEXT:
            raise CheckpointMismatch(
                f"the checkpoint's release learnt '{source}' as plain text, and this one would learn its rows: resume "
                "the checkpoint with source set to a copy of the file whose name ends in .txt, or with mode warm_start",
                field="source",
            )
