"""The rule for matrices, against what it claims and against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.optimization.muon import Muon, orthogonalized

SHAPES = [(24, 24), (16, 64), (64, 16), (1, 8)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def after(start: torch.Tensor, *gradients: torch.Tensor, inputs_first: bool = False) -> torch.Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight], "inputs_first": inputs_first}], lr=0.02, weight_decay=0.01)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values_end_up_near_one(shape: tuple[int, int]) -> None:
    found = orthogonalized(drawn(*shape)[None])[0]
    assert found.shape == shape
    values = torch.linalg.svdvals(found.float())
    # The smallest of a square matrix may be as good as nothing, and is lifted as far as five steps lift it.
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_directions_are_kept() -> None:
    matrix = drawn(16, 64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    # Values are lifted to different heights, so the directions agree far better than the numbers do.
    turned = left.mT @ orthogonalized(matrix[None])[0].float() @ right.mT
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.05
    assert turned.diagonal().min() > 0.5


def test_a_gradient_of_nothing_moves_nothing() -> None:
    assert not orthogonalized(torch.zeros(1, 4, 8)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_those_of_torch_s_muon(shape: tuple[int, int]) -> None:
    start, gradients = drawn(*shape, seed=1), [drawn(*shape, seed=2 + number) for number in range(4)]
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.01)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(after(start, *gradients), theirs, atol=2e-3)
    assert not torch.allclose(start, theirs, atol=2e-3)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_a_matrix_kept_the_other_way_round_moves_the_same_way(shape: tuple[int, int]) -> None:
    start, gradient = drawn(*shape), drawn(*shape, seed=1)
    turned = after(start.mT.contiguous(), gradient.mT.contiguous(), inputs_first=True)
    assert torch.equal(turned.mT, after(start, gradient))


def test_a_matrix_without_a_gradient_stays_and_needs_no_memory() -> None:
    weight = nn.Parameter(drawn(4, 4))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.02, weight_decay=0.01)
    optimizer.step()
    assert torch.equal(weight, before)
    assert not optimizer.state


def test_matrices_move_together_as_they_do_alone() -> None:
    """Of several shapes, more than are taken at once, and one among them that has no gradient."""
    shapes = [(512, 1024), (512, 1024), (512, 1024), (8, 16), (8, 16), (16, 8)]
    starts = [drawn(*shape, seed=number) for number, shape in enumerate(shapes)]
    together = [nn.Parameter(start.clone()) for start in starts]
    for number, weight in enumerate(together):
        weight.grad = None if number == 1 else drawn(*weight.shape, seed=10 + number)
    Muon(together, lr=0.02, weight_decay=0.01).step()
    assert torch.equal(together[1], starts[1])
    for number in (0, 2, 3, 4, 5):
        alone = after(starts[number], drawn(*shapes[number], seed=10 + number))
        torch.testing.assert_close(together[number].detach(), alone, rtol=0, atol=2e-4)
