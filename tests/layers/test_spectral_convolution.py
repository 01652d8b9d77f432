"""FourierConv: SpectralConv where that is right, our transforms where it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.spectral_convolution import SpectralConv

from neuralop_sae.layers import FourierConv
from neuralop_sae.testing import assert_equal


def pair(modes: tuple[int, ...], **kwargs: Any) -> tuple[SpectralConv, FourierConv]:
    theirs, ours = SpectralConv(3, 4, modes, **kwargs), FourierConv(3, 4, modes, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("factorization", [None, "tucker"])
@pytest.mark.parametrize(
    ("modes", "grid"), [((7,), (9,)), ((6,), (6,)), ((4, 5), (8, 9)), ((9, 9), (8, 6)), ((3, 4, 4), (6, 6, 7))]
)
def test_same_as_upstream_on_even_grids(modes: tuple[int, ...], grid: tuple[int, ...], factorization: str | None) -> None:
    theirs, ours = pair(modes, factorization=factorization)
    x = torch.randn(2, 3, *grid)
    assert_equal("SpectralConv", ours(x), theirs(x))


def test_without_bias() -> None:
    theirs, ours = pair((4, 4), bias=False)
    x = torch.randn(1, 3, 8, 8)
    assert_equal("no bias", ours(x), theirs(x))


def test_right_where_upstream_is_not() -> None:
    """A band-limited field through the same weights on 15 and 16 points, and from 16 to 32: the same function."""
    theirs, ours = pair((5, 5))

    def field(n: int, m: int) -> torch.Tensor:
        a, b = torch.arange(n)[:, None] / n, torch.arange(m) / m
        phases = torch.tensor([0.1, 1.0, 2.0])[:, None, None]
        return torch.cos(2 * math.pi * (a + 2 * b) + phases)[None] + torch.sin(4 * math.pi * a + phases)[None]

    fine = ours(field(30, 32))
    assert_equal("odd grid", ours(field(15, 16)), fine[..., ::2, ::2], factor=2)
    assert_equal("output_shape", ours(field(15, 16), output_shape=(30, 32)), fine, factor=2)
    with pytest.raises(AssertionError, match="relative error"):  # when this fails, upstream is mended
        assert_equal("upstream on an odd grid", theirs(field(15, 16)), ours(field(15, 16)), factor=100)


def test_double_precision() -> None:
    ours = FourierConv(2, 2, (3, 4))
    for parameter in ours.parameters():
        parameter.data = parameter.data.to(torch.complex128 if parameter.is_complex() else torch.float64)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,), fast_mode=True)


def test_in_fno_blocks() -> None:
    blocks = FNOBlocks(3, 3, (5, 5), n_layers=1, conv_module=FourierConv)
    assert isinstance(blocks.convs[0], FourierConv)
    x = torch.randn(1, 3, 9, 8)
    shifted = blocks(x.roll((2, 3), (2, 3)))
    assert_equal("shift equivariance on an odd grid", shifted, blocks(x).roll((2, 3), (2, 3)))


@pytest.mark.parametrize("modes", [(1,), (5, 1)])
def test_one_mode_in_the_last_dimension(modes: tuple[int, ...]) -> None:
    theirs, ours = pair(modes)
    x = torch.randn(2, 3, *(8,) * len(modes))
    assert_equal("one mode", ours(x), theirs(x))


def test_resolution_scaling_factor() -> None:
    """As SpectralConv with output_shape: the same function on the scaled grid."""
    _, ours = pair((5, 5), resolution_scaling_factor=2)
    x = torch.randn(1, 3, 9, 8)
    assert_equal("scaled", ours(x), ours(x, output_shape=(18, 16)))


def test_fewer_modes_than_the_weight_holds() -> None:
    """Incremental training sets n_modes below max_n_modes; the middle of the weight then acts, as upstream."""
    theirs, ours = pair((5, 8))
    theirs.n_modes = ours.n_modes = (3, 4)
    x = torch.randn(1, 3, 8, 8)
    assert_equal("fewer modes", ours(x), theirs(x))
