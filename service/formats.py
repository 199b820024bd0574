"""Which form of an answer a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from starlette.requests import Request

Format = TypeVar("Format", bound=str)


def accepted(request: Request, formats: Mapping[str, Format], default: Format) -> Format:
    """The first of the media types in `Accept` that there is a format for."""
    kinds = (part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(","))
    return next((formats[kind] for kind in kinds if kind in formats), default)
