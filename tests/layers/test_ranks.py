"""Ranks within their budget, as neuralop takes them."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from neuralop.layers.spectral_convolution import SpectralConv

from neuralop_sae.layers.factorized import MixedKernels
from neuralop_sae.layers.kernels import kernels_of
from neuralop_sae.layers.ranks import dictionary_rank
from neuralop_sae.testing import assert_equal

SIZES = [
    (64, 65536, (16, 9), 0.01),
    (64, 65536, (16, 9), 0.001),
    (32, 64, (9, 5), 0.15),
    (32, 1024, (16, 9), 1.0),
    (32, 1024, (16, 9), 0.003),
    (8, 64, (9,), 0.2),
    (16, 512, (8, 8, 5), 0.05),
    (64, 16, (12, 7), 0.1),
    (1, 32, (5, 3), 0.5),
]


def parameters(form: str, rank: Any, sizes: tuple[int, ...]) -> int:
    if form == "cp":
        return int(rank) * (1 + sum(sizes))
    if form == "tucker":
        return math.prod(rank) + sum(r * size for r, size in zip(rank, sizes, strict=True))
    return sum(left * size * right for left, size, right in zip(rank, sizes, rank[1:], strict=False))


def sizes_of(m: int, p: int, modes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (p, m, *modes) if axis == 0 else (m, p, *modes)


def ranks(form: str, rank: Any, m: int, p: int, modes: tuple[int, ...], axis: int) -> Any:
    return dictionary_rank(form, rank, n_channels=m, n_concepts=p, mode_shape=modes, axis=axis)


@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("m", "p", "modes", "share"), SIZES)
def test_the_budget_is_kept_and_used(form: str, axis: int, m: int, p: int, modes: tuple[int, ...], share: float) -> None:
    rank = ranks(form, share, m, p, modes, axis)
    spent = parameters(form, rank, sizes_of(m, p, modes, axis)) / (m * p * math.prod(modes))
    assert spent <= share
    assert spent > 0.5 * share  # the rest would not pay for one rank more on the concepts' axis (TT: for one more b)
    assert ranks(form, rank, m, p, modes, axis) == rank  # what is given is also allowed


def test_the_budget_is_kept_for_many_small_shapes() -> None:
    for m, p, modes, share in product((1, 3, 16), (1, 5, 40), ((7,), (4, 3), (2, 3, 4)), (0.05, 0.3, 1.0)):
        for form, axis in product(("tucker", "cp", "tt"), (0, 1)):
            sizes = sizes_of(m, p, modes, axis)
            rank = ranks(form, share, m, p, modes, axis)
            smallest = {"tucker": (1,) * len(sizes), "cp": 1, "tt": (1,) * (len(sizes) + 1)}[form]
            assert rank == smallest or parameters(form, rank, sizes) <= share * math.prod(sizes)


def test_channels_and_modes_stay_full_for_many_concepts() -> None:
    assert ranks("tucker", 0.01, 64, 65536, (16, 9), 0) == (80, 64, 16, 9)
    assert ranks("ComplexTucker", 0.01, 64, 65536, (16, 9), 1) == (64, 80, 16, 9)
    assert ranks("tucker", 0.001, 64, 65536, (16, 9), 0) == (8, 64, 16, 9)  # smaller templates would not pay for a tenth


def test_all_axes_give_way_where_the_core_takes_the_budget() -> None:
    concepts, channels, *modes = ranks("tucker", 0.15, 32, 64, (9, 5), 0)
    assert concepts >= 20 > 8  # full axes would leave 8 templates, too few to write 32 channels
    assert channels >= 20
    assert modes == [6, 3]


@pytest.mark.parametrize(("m", "p", "modes", "share"), [s for s in SIZES if s[1] <= 1024])
@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
def test_neuralop_takes_them_and_adjoints_match(form: str, m: int, p: int, modes: tuple[int, ...], share: float) -> None:
    n_modes = (*modes[:-1], 2 * (modes[-1] - 1))
    layers = []
    share = min(share, 0.2)
    for axis in (0, 1):
        rank = ranks(form, share, m, p, modes, axis)
        conv = SpectralConv(
            *sizes_of(m, p, modes, axis)[:2], n_modes, factorization=form, rank=rank, implementation="factorized"
        )
        assert tuple(conv.weight.shape) == sizes_of(m, p, modes, axis)
        assert conv.weight.rank == rank
        held = sum(parameter.numel() for parameter in conv.parameters()) - conv.bias.numel()
        assert held == parameters(form, rank, sizes_of(m, p, modes, axis))
        kernels = kernels_of(conv.weight, axis)
        assert isinstance(kernels, MixedKernels)
        kernels.reset_(1.0)
        layers.append(kernels)
    decoder, encoder = layers
    encoder.copy_adjoint_(decoder)
    if form != "tt" or encoder.mixing_shape[0] == m:
        some = slice(0, 20)
        assert_equal("adjoint", encoder.rows(some), decoder.rows(some).conj())


def test_explicit_ranks_are_passed_through() -> None:
    small = (4, 10, (5, 3))
    assert ranks("tucker", [10, 4, 5, 3], *small, 0) == (10, 4, 5, 3)
    assert ranks("tucker", 4, *small, 0) == (4, 4, 4, 3)
    assert ranks("cp", 7, *small, 1) == 7
    assert ranks("tt", (1, 4, 15, 3, 1), *small, 1) == (1, 4, 15, 3, 1)
    assert ranks("TT", 6, *small, 1) == (1, 4, 6, 3, 1)


@pytest.mark.parametrize(
    ("form", "rank", "message"),
    [
        ("tucker", (10, 4, 5), r"rank \(10, 4, 5\) is impossible for tucker; allowed: 4 ranks from 1 to \(10, 4, 5, 3\)"),
        ("tucker", (11, 4, 5, 3), "is impossible for tucker"),
        ("tucker", (0, 4, 5, 3), "is impossible for tucker"),
        ("tucker", 11, "rank 11 is impossible for tucker"),
        ("cp", 0, "rank 0 is impossible for cp; allowed: from 1 to 60, or a float"),
        ("cp", (3,), "is impossible for cp"),
        ("tt", (1, 4, 3, 1), r"is impossible for tt; allowed: 5 ranks from 1 to \(1, 10, 15, 3, 1\)"),
        ("tt", (2, 4, 3, 3, 1), "is impossible for tt"),
        ("tt", 0.0, r"rank 0.0 as a share of the dense parameters has to be in \(0, 1\]"),
        ("cp", 1.5, "rank 1.5 as a share"),
        ("tucker", math.nan, "rank nan as a share"),
        ("dense", 0.5, "no ranks for factorization 'dense'; known: tucker, cp, tt"),
    ],
)
def test_impossible_ranks_name_what_is_allowed(form: str, rank: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(form, rank, 4, 10, (5, 3), 0)
