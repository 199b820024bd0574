"""Base models at hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from core.bases.at_hand import models_at_hand
from service.deps import Settings
from service.schemas import Page

router = APIRouter(tags=["models"])


class ModelOut(BaseModel):
    """A model that a run can start from, or why it cannot; `name` is what `base_model` takes."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    source: Literal["folder", "cache"]
    family: str | None = None
    size_bytes: int | None = None
    num_parameters: int | None = None
    max_context: int | None = None
    has_chat_template: bool = False
    error: str | None = None


@router.get("/models")
def list_models(settings: Settings) -> Page[ModelOut]:
    """The models below the models root, and those in Hugging Face's cache on the service's machine.

    A folder that cannot be a base says why in `error`. Others can be had from the hub by their names there, if a worker
    can reach it.
    """
    return Page(data=[ModelOut(**asdict(found)) for found in models_at_hand(settings.models)])
