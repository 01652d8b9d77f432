"""Rows of factorised weights against the dense tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import nn

from neuralop_sae.layers.factorized import concept_rows, copy_adjoint_, mode_major_, scale_rows_
from neuralop_sae.testing import assert_equal

KINDS = [(None, 1.0), ("tucker", 0.4), ("cp", 0.4), ("tt", 0.4), ("ComplexTucker", (2, 3, 2, 2))]


def make(n_in: int, n_out: int, kind: str | None, rank: object, modes: tuple[int, ...] = (4, 5)) -> Any:
    conv = SpectralConv(n_in, n_out, modes, factorization=kind, rank=rank, implementation="factorized")
    return conv.weight


@pytest.mark.parametrize(("kind", "rank"), KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("modes", [(6,), (4, 5), (3, 2, 4)])
def test_rows_are_slices_of_the_dense_weight(kind: str | None, rank: object, axis: int, modes: tuple[int, ...]) -> None:
    if isinstance(rank, tuple) and len(modes) != 2:
        rank = 0.5
    weight = make(7, 6, kind, rank, modes)
    mode_major_(weight, axis=axis)
    dense = weight.to_tensor()
    expected = dense.permute(axis, *range(2, dense.ndim), 1 - axis)
    for concepts in (torch.tensor([4, 0, 4]), slice(1, 4), slice(5, 99), torch.tensor([], dtype=torch.int64)):
        assert_equal(f"rows {concepts}", concept_rows(weight, concepts, axis=axis), expected[concepts])


@pytest.mark.parametrize(("kind", "rank"), KINDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_give_gradients_of_the_dense_weight(kind: str | None, rank: object, axis: int) -> None:
    weight = make(5, 6, kind, rank)
    concepts = torch.tensor([3, 1])
    gradients = []
    for way in ("rows", "dense"):
        dense = weight.to_tensor()
        rows = dense.permute(axis, 2, 3, 1 - axis)[concepts] if way == "dense" else concept_rows(weight, concepts, axis=axis)
        cotangent = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(1))
        (rows * cotangent).real.sum().backward()
        gradients.append([parameter.grad.clone() for parameter in weight.parameters()])
        weight.zero_grad()
    assert gradients[0]
    for mine, reference in zip(*gradients, strict=True):
        assert_equal("gradient", mine, reference)


@pytest.mark.parametrize("axis", [0, 1])
def test_mode_major_changes_the_layout_only(axis: int) -> None:
    weight = make(5, 6, None, 1.0)
    before = weight.to_tensor().clone()
    mode_major_(weight, axis=axis)
    assert torch.equal(weight.to_tensor(), before)
    rows = concept_rows(weight, slice(1, 4), axis=axis)
    assert rows.is_contiguous()
    assert rows.untyped_storage().data_ptr() == weight.tensor.untyped_storage().data_ptr()
    assert isinstance(weight.tensor, nn.Parameter)
    assert len(list(weight.parameters())) == 1


@pytest.mark.parametrize(("kind", "rank"), KINDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_scale_rows(kind: str | None, rank: object, axis: int) -> None:
    weight = make(5, 6, kind, rank)
    scale = torch.arange(1.0, 6 + axis)
    expected = weight.to_tensor().detach() * scale.view(
        *(() if axis else (-1,)), *(1,) * (1 if not axis else 0), *((-1,) if axis else ()), 1, 1
    )
    scale_rows_(weight, scale, axis=axis)
    assert_equal("scaled", weight.to_tensor(), expected)


@pytest.mark.parametrize(("kind", "rank"), KINDS)
def test_adjoint_is_the_conjugate_transpose(kind: str | None, rank: object) -> None:
    decoder, encoder = (
        make(8, 3, kind, (3, 2, 2, 2) if isinstance(rank, tuple) else rank),
        make(3, 8, kind, (2, 3, 2, 2) if isinstance(rank, tuple) else rank),
    )
    before = encoder.to_tensor().detach().clone()
    copied = copy_adjoint_(encoder, decoder)
    assert copied == (kind != "tt")
    assert_equal("adjoint", encoder.to_tensor(), decoder.to_tensor().conj().transpose(0, 1) if copied else before)


def test_adjoint_of_another_form_is_refused_without_a_change() -> None:
    for first, second in [((None, 1.0), ("tucker", 0.4)), (("tucker", 0.4), ("cp", 0.4)), (("cp", 2), ("cp", 3))]:
        encoder, decoder = make(3, 8, *first), make(8, 3, *second)
        before = encoder.to_tensor().detach().clone()
        assert not copy_adjoint_(encoder, decoder)
        assert torch.equal(encoder.to_tensor(), before)


def test_unknown_factorization_lists_the_known() -> None:
    class Block(nn.Module):
        name = "ComplexBlockTT"

    with pytest.raises(ValueError, match="no rows for factorization 'blocktt'; known: dense, tucker, cp, tt"):
        concept_rows(Block(), slice(0, 1), axis=0)
