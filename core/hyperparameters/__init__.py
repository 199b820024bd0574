"""What a run is, field by field, in four rooms: its data, its model, how it learns, and what it tells and keeps.

`core.config.TrainingConfig` is all of them. Checks within one room are beside its fields, those between rooms there.
"""

from __future__ import annotations

import json
from typing import Any


def from_json(value: Any) -> Any:
    """Lists and objects as a shell has them: JSON in a text, or names separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from None
    return [part.strip() for part in value.split(",") if part.strip()]
