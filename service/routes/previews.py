"""The first training batch of a run on a source, as the model would see it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from core.config import parse
from service.forecasts import PreviewOut
from service.routes.preflight import ForecastsDep
from service.schemas import JobIn

router = APIRouter(tags=["sources"])


@router.get("/sources/{name:path}/preview")
def preview_source(
    name: str,
    forecasts: ForecastsDep,
    model_type: str | None = None,
    base_model: str | None = None,
    tokenizer: str | None = None,
    bpe_vocab_size: int | None = None,
    block_size: int | None = None,
    batch_size: int | None = None,
    method: str | None = None,
    columns: Annotated[str | None, Query(description='JSON: `{"prompt": "question", …}`.')] = None,
    packing: bool | None = None,
    seed: int | None = None,
) -> PreviewOut:
    """Show the first training batch of a run on a source: what of its text is learnt, what only read, what padding.

    The options are those of `POST /jobs`, with the same bounds and defaults. It takes a worker to tell: 503 without.
    """
    options = {
        "model_type": model_type,
        "base_model": base_model,
        "tokenizer": tokenizer,
        "bpe_vocab_size": bpe_vocab_size,
        "block_size": block_size,
        "batch_size": batch_size,
        "method": method,
        "columns": columns,
        "packing": packing,
        "seed": seed,
    }
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    return forecasts.preview(parse(JobIn, {"source": name, **given}))
