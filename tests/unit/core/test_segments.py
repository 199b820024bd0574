"""Several examples in one row: each says what it says alone, whichever model it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.models import LanguageModel
from core.models.attention import segment_mask, segment_positions
from core.models.bigram import BigramLanguageModel, BigramLanguageModelLoRA
from core.models.causal_lm import CausalLM
from core.models.modern import ModernLanguageModel, ModernLanguageModelLoRA
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT

LENGTHS = (5, 1, 20, 7)

UNABLE = {"opt", "bloom"}
"""Their masks are made without a look at positions."""

SHAPE = (40, 64, 32, 2, 2)
FROM_SCRATCH: dict[str, Callable[[], LanguageModel]] = {
    "classic": lambda: BigramLanguageModel(*SHAPE),
    "classic_lora": lambda: BigramLanguageModelLoRA(*SHAPE),
    "modern": lambda: ModernLanguageModel(*SHAPE),
    "modern_lora": lambda: ModernLanguageModelLoRA(*SHAPE),
}


def examples(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (1, length), generator=generator) for length in LENGTHS]


def check_packed_is_alone(model: LanguageModel) -> None:
    model.eval()
    parts = examples(model.vocab_size)
    segments_BT = torch.cat([torch.full_like(ids_BT, 3 * number) for number, ids_BT in enumerate(parts)], dim=1)
    # Two rows that are cut at different places.
    rows_BT = torch.cat([torch.cat(parts, dim=1), torch.cat(parts[::-1], dim=1)])
    segments_BT = torch.cat([segments_BT, segments_BT.flip(1).neg()])
    with torch.inference_mode():
        packed_BTV, _ = model(rows_BT, segments_BT=segments_BT)
        alone = [model(ids_BT)[0] for ids_BT in parts]
    torch.testing.assert_close(packed_BTV[:1], torch.cat(alone, dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed_BTV[1:], torch.cat(alone[::-1], dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", list(FROM_SCRATCH))
def test_examples_in_one_row_of_a_model_from_scratch_do_not_see_one_another(kind: str) -> None:
    torch.manual_seed(0)
    model = FROM_SCRATCH[kind]()
    assert model.supports_segments
    check_packed_is_alone(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_examples_in_one_row_of_a_pretrained_model_do_not_see_one_another(tmp_path: Path, family: str) -> None:
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family), use_lora=True)
    model.train()
    assert model.supports_segments == (family not in UNABLE)
    assert model.training, "a measurement leaves no trace"
    if model.supports_segments:
        check_packed_is_alone(model)


def test_whether_segments_are_kept_apart_is_measured_once(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(llama_folder)
    before = torch.get_rng_state()
    assert model.supports_segments
    assert torch.equal(torch.get_rng_state(), before), "a run that packs draws the same numbers"

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured twice")

    monkeypatch.setattr(model, "forward", never)
    assert model.supports_segments


@pytest.mark.parametrize("kind", list(FROM_SCRATCH))
def test_one_segment_is_no_segments(kind: str) -> None:
    torch.manual_seed(0)
    model = FROM_SCRATCH[kind]().eval()
    ids_BT = torch.cat(examples(model.vocab_size), dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(ids_BT)[0], model(ids_BT, segments_BT=torch.zeros_like(ids_BT))[0], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["classic", "modern"])
def test_targets_that_are_to_be_ignored_count_for_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model = FROM_SCRATCH[kind]().eval()
    ids_BT = torch.cat(examples(model.vocab_size), dim=1)
    targets_BT = ids_BT.roll(-1, dims=1)
    masked_BT = targets_BT.clone()
    masked_BT[:, 10:] = -100
    with torch.inference_mode():
        torch.testing.assert_close(model(ids_BT, masked_BT)[1], model(ids_BT[:, :10], targets_BT[:, :10])[1])


def test_positions_begin_anew_with_each_segment() -> None:
    segments_BT = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 6, 6, 6, 6, 9]])
    assert segment_positions(segments_BT).tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 0]]
    assert segment_mask(segments_BT).shape == (2, 1, 6, 6)
    assert segment_mask(segments_BT)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
