"""JSON of rows that may come from anywhere: parsed if it is some, and not larger in memory than a row may be."""

from __future__ import annotations

import json
import re
from typing import Any

LARGE_JSON = 1 << 20
"""Characters from which on values are counted before anything is parsed: three of them can become eighty bytes."""

MAX_VALUES = 1_000_000
"""Values in one row."""

# Possessive, so that a string of megabytes is passed over without a memory of how.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class Unfit(Exception):
    """A record that makes no row.

    Args:
        reason: To be read after the record's number.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_json(text: str, what: str = "") -> Any:
    """The value of a JSON text.

    Args:
        what: Whose text it is, such as "its 'messages' "; the row's own if empty.

    Raises:
        Unfit: it is none, or more than a row may hold.
    """
    if len(text) > LARGE_JSON and sum(map(_STRING.sub("", text).count, ",:[{")) > MAX_VALUES:
        raise Unfit(f"{what}has more than {MAX_VALUES:,} values")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unfit(f"{what}is no JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise Unfit(f"{what}is nested too deeply") from None
    except ValueError:
        raise Unfit(f"{what}has a number of more digits than can be read") from None
