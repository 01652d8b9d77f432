"""Dense weights into factorised ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers.decompose import decompose_
from neuralop_sae.layers.factorized import MixedKernels
from neuralop_sae.layers.kernels import kernels_of
from neuralop_sae.testing import relative_error

CASES = [
    ("tucker", (5, 6, 3, 3)),
    ("tucker", (6, 4, 4, 5)),
    ("cp", 4),
    ("cp", 12),
    ("tt", (1, 5, 4, 3, 1)),
    ("ComplexTucker", (5, 6, 3, 3)),
    ("ComplexCP", 4),
    ("ComplexTT", (1, 5, 4, 3, 1)),
]


def weight(form: str, rank: Any, n_in: int = 6, n_out: int = 40) -> Any:
    return SpectralConv(n_in, n_out, (4, 8), factorization=form, rank=rank, implementation="factorized").weight


def low_rank(form: str, rank: Any) -> Tensor:
    torch.manual_seed(0)
    source = weight(form, rank)
    kernels = kernels_of(source, 1)
    assert isinstance(kernels, MixedKernels)
    kernels.reset_(3.0)
    return source.to_tensor().detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("form", "rank"), CASES)
def test_what_is_low_rank_is_recovered(form: str, rank: Any) -> None:
    dense, target = low_rank(form, rank), weight(form, rank)
    before = list(target.parameters())
    error = decompose_(target, dense)
    assert error < 1e-4
    assert error == pytest.approx(relative_error(target.to_tensor(), dense), abs=1e-6)
    assert relative_error(dense.real.to(dense.dtype), dense) > 0.5  # the imaginary part matters
    assert all(mine is theirs for mine, theirs in zip(before, target.parameters(), strict=True))


@pytest.mark.parametrize(("form", "rank"), CASES)
def test_noise_is_not_fitted(form: str, rank: Any) -> None:
    dense = low_rank(form, rank)
    noise = 0.3 * torch.randn_like(dense)
    target = weight(form, rank)
    error = decompose_(target, dense + noise)
    assert error < float(noise.norm() / (dense + noise).norm())
    assert relative_error(target.to_tensor(), dense) < 0.6 * float(noise.norm() / dense.norm())


@pytest.mark.parametrize(("form", "rank"), [("tucker", (6, 40, 4, 5)), ("tt", (1, 6, 20, 5, 1)), ("tt", (1, 6, 60, 7, 1))])
def test_full_rank_is_exact_and_surplus_rank_is_zero(form: str, rank: Any) -> None:
    torch.manual_seed(0)
    dense = torch.randn(6, 40, 4, 5, dtype=torch.complex64)
    assert decompose_(weight(form, rank), dense) < 1e-5


@pytest.mark.parametrize("form", ["tucker", "tt"])
def test_error_is_that_of_the_singular_values(form: str) -> None:
    """With one axis cut, no approximation is better than the truncated singular value decomposition."""
    torch.manual_seed(0)
    n_concepts, kept = 60, 8  # few enough of them for the random projection
    dense = torch.randn(n_concepts, 6, 4, 5, dtype=torch.complex64) * torch.logspace(0, -4, n_concepts)[:, None, None, None]
    rank = (kept, 6, 4, 5) if form == "tucker" else (1, kept, 20, 5, 1)
    error = decompose_(weight(form, rank, n_concepts, 6), dense)
    values = torch.linalg.svdvals(dense.flatten(1))
    assert error == pytest.approx(float(values[kept:].norm() / values.norm()), rel=1e-2)


def test_zero_and_tiny_tensors() -> None:
    for form, rank in CASES:
        target = weight(form, rank)
        assert decompose_(target, torch.zeros(6, 40, 4, 5, dtype=torch.complex64)) == 0
        assert decompose_(target, 1e-12 * low_rank(form, rank)) < 1e-4


def test_refusals() -> None:
    dense = torch.ones(6, 40, 4, 5, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"shape \(6, 40, 4\) for a complex weight of shape \(6, 40, 4, 5\)"):
        decompose_(weight("cp", 2), dense[..., 0])
    with pytest.raises(ValueError, match="got a torch.float32 tensor"):
        decompose_(weight("cp", 2), dense.real)
    with pytest.raises(ValueError, match="not finite"):
        decompose_(weight("cp", 2), dense * float("nan"))
    with pytest.raises(ValueError, match="cannot decompose into factorization 'ComplexDense'; known: tucker, cp, tt"):
        decompose_(weight("ComplexDense", None), dense)
