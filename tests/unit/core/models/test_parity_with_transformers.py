"""A pretrained model's loss and gradients are those of transformers itself, given the same rows as labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.losses import UNLEARNT, num_learnt
from core.models.causal_lm import CausalLM
from core.objectives import NextToken
from core.tokens.batches import Batch
from tests.tiny_models import make_model_folder
from tests.unit.core.conftest import TEXT

LENGTH = 24


def rows(vocab_size: int, *, masked: bool) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T) as transformers takes them: a label is the token of its own place."""
    ids_BT = torch.randint(0, vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    labels_BT = ids_BT.clone()
    if masked:
        # A prompt, a turn that is silenced, padding.
        labels_BT[:, :7] = labels_BT[0, 11:15] = labels_BT[1, 18:] = UNLEARNT
    return ids_BT, labels_BT


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_loss_and_gradients_are_transformers_own(tmp_path: Path, family: str, masked: bool) -> None:
    folder = make_model_folder(tmp_path / family, TEXT, family)
    # Without dropout, which the two would draw differently.
    ours, theirs = CausalLM(folder).eval(), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids_BT, labels_BT = rows(ours.vocab_size, masked=masked)
    targets_BT = labels_BT[:, 1:]
    loss = NextToken().loss(ours, Batch(ids_BT[:, :-1], targets_BT, None, num_learnt(targets_BT)))
    expected = theirs(input_ids=ids_BT, labels=labels_BT).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    found = {name: parameter.grad for name, parameter in ours.network.named_parameters()}
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())
