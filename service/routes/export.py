"""A checkpoint's model as a Hugging Face folder below the models root."""

from __future__ import annotations

from typing import Annotated, Literal

from anyio import from_thread
from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.deps import Checkpoints, Generation, Ledger, Owner
from service.inference import find_desk

router = APIRouter(tags=["checkpoints"])


def _a_name(name: str) -> str:
    if name.startswith("tmp-") or ".." in name:
        raise ValueError("may not begin with 'tmp-' or have '..' in it")
    return name


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$"), AfterValidator(_a_name)]


class ExportIn(BaseModel):
    """What the folder is to be."""

    model_config = ConfigDict(extra="forbid")

    name: ModelName | None = Field(None, description="Of the folder; by default the checkpoint's, without its prefix.")
    merge: bool = Field(False, description="Add adapters to their base, so that the folder needs no other.")


class ExportOut(BaseModel):
    """The folder that was written; `path` is relative to the models root, and `name` is a `base_model`."""

    name: str
    path: str
    size_bytes: int
    kind: Literal["model", "adapter"]


@router.post("/checkpoints/{ref}/export", status_code=201)
def export_checkpoint(
    ref: str, shelf: Checkpoints, ledger: Ledger, generation: Generation, owner: Owner, body: ExportIn | None = None
) -> ExportOut:
    """Write a checkpoint (id, name, `latest` or `<job>:best`) as a folder that plain `from_pretrained` loads.

    GPT-2 becomes `config.json`, `model.safetensors` and a tokenizer, and can be named as `base_model` at once; adapters
    become a PEFT folder, or such a model with `merge`. A model from scratch has no Hugging Face class: 409, download
    its folder instead. A name that is taken is 409 as well.
    """
    wanted = body or ExportIn()
    name = shelf.find(owner, ref).name
    with ledger.read() as session:
        desk = find_desk(session)
    return ExportOut(**from_thread.run(generation.export, desk, name, wanted.name, wanted.merge))
