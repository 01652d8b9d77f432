"""ConceptCodes against the dense tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from neuralop_sae.codes import ConceptCodes, concatenate
from neuralop_sae.layers import FourierBasis, Selection
from neuralop_sae.testing import assert_equal

BASIS = FourierBasis((3, 3))


def make(n_samples: int = 3, p: int = 5, grid: tuple[int, ...] = (6, 7), seed: int = 0) -> tuple[ConceptCodes, Tensor]:
    """Codes and the dense tensor from which they are taken; the last sample has none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n_samples, p, generator=generator) < 0.5
    mask[-1] = False
    dense = torch.randn(n_samples, p, *grid, dtype=torch.float64, generator=generator) * mask[..., None, None]
    selection = Selection.from_mask(mask)
    values = dense[selection.sample, selection.concept]
    return ConceptCodes(selection.sample, selection.concept, values, n_samples, p, BASIS), dense


def test_to_dense_and_of() -> None:
    codes, dense = make()
    assert torch.equal(codes.to_dense(), dense)
    for concept in range(5):
        assert torch.equal(codes.of(concept), dense[:, concept])
    for concept in (-1, 5):
        with pytest.raises(ValueError, match=f"concept {concept} is out of range for 5 concepts"):
            codes.of(concept)
    assert codes.grid == (6, 7)
    assert len(codes) == len(codes.sample)
    assert repr(codes) == f"ConceptCodes({len(codes)} codes of 5 concepts in 3 samples on (6, 7))"


def test_to_dense_passes_gradients() -> None:
    codes, _ = make()
    values = codes.values.clone().requires_grad_()
    again = ConceptCodes(codes.sample, codes.concept, values, 3, 5, BASIS)
    (again.to_dense() * 2).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full_like(values, 2))
    assert not again.detach().values.requires_grad


def test_selection_holds_the_pairs() -> None:
    codes, dense = make()
    assert torch.equal(codes.selection.mask(), dense.flatten(2).any(2))
    assert (codes.selection.n_samples, codes.selection.n_concepts) == (3, 5)


def test_norms_by_quadrature_do_not_depend_on_the_grid() -> None:
    """|sin(2 pi s1)| has norm sqrt(1/2) on every grid."""
    for grid in [(6, 7), (13, 4), (32, 32)]:
        wave = torch.sin(2 * math.pi * torch.arange(grid[0], dtype=torch.float64) / grid[0])[:, None].expand(grid)
        codes = ConceptCodes(torch.tensor([0]), torch.tensor([2]), 3 * wave[None], 1, 5, BASIS)
        assert codes.norms().tolist() == pytest.approx([3 * math.sqrt(0.5)], abs=1e-12)
    codes, dense = make()
    assert_equal("norms", codes.norms(), dense.square().mean((2, 3)).sqrt()[codes.sample, codes.concept])


def test_norms_have_a_finite_gradient_where_a_code_is_zero() -> None:
    """A code that is rectified, or gated, to zero everywhere must not poison a penalty on norms."""
    values = torch.zeros(2, 4, 4)
    values[0] = 1.0
    values.requires_grad_()
    codes = ConceptCodes(torch.tensor([0, 0]), torch.tensor([0, 1]), values, 1, 5, BASIS)
    codes.norms().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_resample() -> None:
    codes, dense = make()
    finer = codes.resample((12, 15))
    assert finer.grid == (12, 15)
    assert torch.equal(finer.concept, codes.concept)
    assert_equal("resampled", finer.to_dense(), BASIS.resample(dense, (12, 15)))
    s = torch.arange(6, dtype=torch.float64) / 6
    one = ConceptCodes(
        torch.tensor([0]), torch.tensor([0]), torch.cos(2 * math.pi * s)[None, :, None].expand(1, 6, 7), 1, 1, BASIS
    )
    t = torch.arange(9, dtype=torch.float64) / 9
    assert_equal("cosine", one.resample((9, 7)).values[0, :, 0], torch.cos(2 * math.pi * t))


def test_l0_counts_codes_that_are_not_zero() -> None:
    """Per sample: a row that is zero everywhere is not on. Per point: by the measure, samples without codes included."""
    values = torch.zeros(3, 6, 7, dtype=torch.float64)
    values[0, :3] = 1  # half of the domain
    values[1, :, :] = -2  # all of it, negative
    codes = ConceptCodes(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), values, 4, 5, BASIS)
    assert codes.l0().item() == 2 / 4
    assert codes.l0_local().item() == pytest.approx(1.5 / 4)
    codes, dense = make()
    assert codes.l0().item() == pytest.approx(dense.flatten(2).any(2).sum().item() / 3)
    assert codes.l0_local().item() == pytest.approx((dense != 0).sum().item() / (3 * 42))
    nothing = codes.keep(codes.concept < 0)
    assert nothing.l0() == 0
    assert nothing.l0_local() == 0


def test_keep_and_cpu() -> None:
    codes, dense = make()
    rows = codes.concept != 2
    kept = codes.keep(rows).to_dense()
    expected = dense.clone()
    expected[:, 2] = 0
    assert torch.equal(kept, expected)
    assert torch.equal(codes.cpu().to_dense(), dense)
    nothing = codes.keep(torch.zeros_like(rows))
    assert len(nothing) == 0
    assert not nothing.to_dense().any()
    assert nothing.norms().shape == (0,)


def test_concatenate() -> None:
    (first, dense), (second, other) = make(), make(2, seed=1)
    both = concatenate([first, second, first])
    assert both.n_samples == 8
    assert both.n_concepts == 5
    assert torch.equal(both.to_dense(), torch.cat([dense, other, dense]))
    assert torch.equal(concatenate([first]).to_dense(), dense)
    assert (both.sample.diff() >= 0).all()


def test_concatenate_refuses() -> None:
    with pytest.raises(ValueError, match="no codes to concatenate"):
        concatenate([])
    for other in (make(grid=(6, 8))[0], make(p=4)[0]):
        with pytest.raises(ValueError, match=r"codes must share \(grid, n_concepts\)"):
            concatenate([make()[0], other])


def test_on_device(device: torch.device) -> None:
    codes, dense = make()
    moved = ConceptCodes(codes.sample.to(device), codes.concept.to(device), codes.values.to(device), 3, 5, BASIS)
    assert moved.to_dense().device.type == device.type
    assert torch.equal(moved.cpu().to_dense(), dense)
    assert torch.equal(moved.of(1).cpu(), dense[:, 1])
