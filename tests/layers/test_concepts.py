"""Concept layers: the shipped contract, neuralop's layers as oracle, closed forms, memory bounds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers import ConceptDecoder, ConceptEncoder, FourierBasis, Selection, Spectrum, moments
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.testing import assert_equal, check_concept_layer

FORMS = [(None, 1.0), ("tucker", 0.5), ("cp", 0.5), ("tt", 0.5)]


def layers(modes: tuple[int, ...], m: int = 3, p: int = 7, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    pair = ConceptEncoder(m, p, modes, **kwargs), ConceptDecoder(m, p, modes, **kwargs)
    return [to_dtype(layer, dtype) for layer in pair]


def to_dtype(layer: Any, dtype: torch.dtype) -> Any:
    """As SAE casts: complex tensors too."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(dtype.to_complex() if parameter.is_complex() else dtype)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize("modes", [(7,), (6,), (5, 5), (4, 6), (4, 3, 5)])
def test_contract(modes: tuple[int, ...], skip: str | None, dtype: torch.dtype) -> None:
    check_concept_layer(*layers(modes, dtype=dtype, skip=skip))


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize(("factorization", "rank"), FORMS[1:])
def test_contract_of_factorised_weights(factorization: str, rank: float, skip: str | None) -> None:
    check_concept_layer(*layers((4, 5), skip=skip, factorization=factorization, rank=rank))
    check_concept_layer(*layers((5, 3), dtype=torch.float32, skip=skip, factorization=factorization, rank=rank))


def test_contract_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "chunk_bytes", lambda _: 1)
    check_concept_layer(*layers((4, 5)))
    check_concept_layer(*layers((5,), p=1, factorization="tucker", rank=0.5))


@pytest.mark.parametrize(("modes", "grid"), [((9, 9), (6, 7)), ((8, 8), (8, 8)), ((8, 8), (5, 4)), ((12,), (7,))])
def test_energies_and_rows_on_grids_that_hold_fewer_modes(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    encoder, decoder = layers(modes)
    x = torch.randn(2, 3, *grid, dtype=torch.float64) + 0.5
    spectrum, dense = Spectrum.of(x, encoder.basis), encoder.dense_forward(x)
    assert_equal("mean square", encoder.energies(spectrum).mean_square, dense.square().flatten(2).mean(2))
    assert_equal("mean", encoder.energies(spectrum).mean, dense.flatten(2).mean(2))
    everything = Selection.from_mask(torch.ones(2, 7, dtype=torch.bool))
    assert_equal("gather", encoder.gather(spectrum, everything), dense.flatten(0, 1))
    assert_equal("decoder", decoder(dense.flatten(0, 1), everything), decoder.dense_forward(dense))


@pytest.mark.parametrize("grid", [(12, 10), (8, 9)])
@pytest.mark.parametrize(("factorization", "rank"), FORMS)
def test_dense_forward_is_neuralops_own_layers(grid: tuple[int, ...], factorization: str | None, rank: float) -> None:
    """In float32 on even leading sizes the oracle calls SpectralConv, and the reference agrees with it."""
    for layer, channels in zip(
        layers((4, 5), dtype=torch.float32, factorization=factorization, rank=rank), (3, 7), strict=True
    ):
        assert type(layer.conv) is SpectralConv
        x = torch.randn(2, channels, *grid)
        assert torch.equal(layer.dense_forward(x), layer.conv(x) + layer.skip(x))
        assert_equal("reference", layer.convolution._reference(layer.conv, x), layer.conv(x))


def test_encoder_is_an_integral_operator() -> None:
    """z_c(s) = int k_c(s - t).x(t) dt + P_c.x(s) + b_c as a sum over points, the kernel being the synthesis of its row."""
    encoder, _ = layers((5, 5), m=2, p=3)
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    rows = encoder.kernels.rows(slice(None)).transpose(1, 2).reshape(3, 2, *encoder.basis.mode_shape)
    kernels = encoder.basis.synthesis(rows, (6, 7))
    spectral = torch.zeros(3, 6, 7, dtype=torch.float64)
    for i in range(6):
        for j in range(7):
            spectral += torch.einsum("m,cmxy->cxy", x[0, :, i, j], kernels.roll((i, j), (2, 3))) / 42
    pointwise = torch.einsum("cm,mxy->cxy", encoder.skip.conv.weight[..., 0], x[0])
    expected = spectral + pointwise + encoder.conv.bias
    everything = Selection.from_mask(torch.ones(1, 3, dtype=torch.bool))
    assert_equal("pre-codes", encoder.gather(Spectrum.of(x, encoder.basis), everything), expected)


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize("modes", [(5, 5), (4, 6)])
@pytest.mark.parametrize(("factorization", "rank"), [f for f in FORMS if f[0] != "tt"])
def test_adjoint_encoder(modes: tuple[int, ...], skip: str | None, factorization: str | None, rank: float) -> None:
    """<decode z, x> = <z, encode x> once the encoder has copied the decoder's adjoint."""
    ranks = [2] * (len(modes) + 2) if factorization == "tucker" else rank
    encoder, decoder = layers(modes, skip=skip, factorization=factorization, rank=ranks)
    encoder.copy_adjoint(decoder)
    for layer in (encoder, decoder):
        layer.conv.bias.data.zero_()
    z, x = torch.randn(1, 7, 9, 8, dtype=torch.float64), torch.randn(1, 3, 9, 8, dtype=torch.float64)
    left, right = (decoder.dense_forward(z) * x).sum(), (z * encoder.dense_forward(x)).sum()
    assert_equal("adjoint", left, right)


def test_gradients_of_rows_are_those_of_the_oracle() -> None:
    for factorization, rank in FORMS:
        encoder, decoder = layers((5, 4), factorization=factorization, rank=rank)
        x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
        selection = Selection.from_mask(torch.rand(2, 7) < 0.5)
        g = torch.randn(2, 3, 9, 8, dtype=torch.float64)
        parameters = [x, *encoder.parameters(), *decoder.parameters()]
        sparse = decoder(encoder.gather(Spectrum.of(x, encoder.basis), selection), selection)
        masked = encoder.dense_forward(x) * selection.mask()[..., None, None]
        dense = decoder.dense_forward(masked)
        for mine, reference in zip(
            torch.autograd.grad((sparse * g).sum(), parameters),
            torch.autograd.grad((dense * g).sum(), parameters),
            strict=True,
        ):
            assert_equal(f"gradient {factorization}", mine, reference)


def test_gradient_of_a_concept_that_is_off_is_zero() -> None:
    encoder, _ = layers((5, 4))
    selection = Selection.from_mask(torch.tensor([[1, 0, 0, 0, 0, 0, 1]], dtype=torch.bool))
    encoder.gather(Spectrum.of(torch.randn(1, 3, 9, 8, dtype=torch.float64), encoder.basis), selection).sum().backward()
    touched = encoder.conv.weight.tensor.grad.abs().sum((0, 2, 3)) > 0
    assert touched.tolist() == [True, False, False, False, False, False, True]


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize(("factorization", "rank"), FORMS)
def test_scaling(skip: str | None, factorization: str | None, rank: float) -> None:
    _, decoder = layers((4, 5), skip=skip, factorization=factorization, rank=rank)
    norms, atoms = decoder.kernel_norms(), decoder.atoms(torch.arange(7), (9, 9))
    factors = torch.arange(1.0, 8.0, dtype=torch.float64)
    decoder.scale_concepts(factors)
    assert_equal("norms", decoder.kernel_norms(), norms * factors)
    assert_equal("atoms", decoder.atoms(torch.arange(7), (9, 9)), atoms * factors[:, None, None, None])
    before: Any = None if decoder.skip is None else decoder.skip.conv.weight.clone()
    decoder.scale_spectral(0.3)
    if decoder.skip is not None:
        assert torch.equal(decoder.skip.conv.weight, before)
        assert_equal("pointwise norm", decoder.skip_rows(slice(None)).norm(dim=1), before[..., 0].norm(dim=0))
    decoder.skip = None
    assert_equal("spectral norm", decoder.kernel_norms(), torch.full((7,), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize(("factorization", "rank"), FORMS)
def test_norms_of_named_concepts_carry_the_gradient_of_what_an_impulse_writes(
    skip: str | None, factorization: str | None, rank: float
) -> None:
    _, decoder = layers((4, 5), skip=skip, factorization=factorization, rank=rank)
    concepts, probe = torch.tensor([5, 0, 3]), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    grid = (9, 9)
    impulses = torch.zeros(3, 7, *grid, dtype=torch.float64)
    impulses[range(3), concepts] = decoder.basis.synthesis(decoder.basis.impulse(like=impulses), grid)
    written = decoder.dense_forward(impulses) - decoder.dense_forward(torch.zeros_like(impulses))
    norms = decoder.basis.mean_square(written).sum(1).sqrt()
    (norms @ probe).backward()
    expected = {p: p.grad for p in decoder.parameters() if p.grad is not None and p.grad.abs().max() > 1e-12}
    decoder.zero_grad()
    found = decoder.kernel_norms(concepts)
    assert_equal("norms", found, norms)
    assert torch.equal(decoder.kernel_norms(), decoder.kernel_norms().detach())
    (found @ probe).backward()
    for parameter, gradient in expected.items():
        assert_equal("gradient", parameter.grad, gradient)
    decoder.zero_grad()
    with RowGradients() as rows:
        (decoder.kernel_norms(concepts) @ probe).backward()
    orders = {parameter: order for parameter, order, _ in rows.parts()}
    by_row = {part.parameter: part for part in rows.sums()}
    assert decoder.kernels.concept_tensor[0] in by_row
    for parameter, gradient in expected.items():
        if parameter not in by_row:
            assert_equal("gradient of what concepts share", parameter.grad, gradient)
            continue
        assert by_row[parameter].index.tolist() == [0, 3, 5]
        assert_equal("gradient by row", by_row[parameter].values, gradient.permute(orders[parameter])[[0, 3, 5]])


def test_kernel_norm_of_a_pointwise_concept_is_the_norm_of_its_vector() -> None:
    _, decoder = layers((5, 5))
    decoder.conv.weight.tensor.data.zero_()
    assert_equal("norms", decoder.kernel_norms(), decoder.skip.conv.weight[..., 0].norm(dim=0))


def test_atoms_are_the_response_to_a_unit_impulse() -> None:
    """Decode by the dense oracle the band-limited delta, centred and of norm one."""
    _, decoder = layers((5, 5))
    grid = (12, 10)
    ones = torch.ones(decoder.basis.mode_shape, dtype=torch.complex128)
    impulse = decoder.basis.synthesis(ones, grid).roll((6, 5), (0, 1))
    impulse = impulse / impulse.square().mean().sqrt()
    assert impulse.argmax() == 6 * 10 + 5
    codes = torch.zeros(7, 7, *grid, dtype=torch.float64)
    codes[range(7), range(7)] = impulse
    expected = decoder.dense_forward(codes) - decoder.conv.bias
    assert_equal("atoms", decoder.atoms(torch.arange(7), grid), expected)
    assert_equal("some", decoder.atoms(torch.tensor([5, 2]), grid), expected[[5, 2]])


def test_atoms_are_the_same_functions_on_every_even_grid() -> None:
    _, decoder = layers((5, 5))
    coarse, fine = (decoder.atoms(torch.arange(7), (n, n)) for n in (8, 16))
    assert_equal("atoms", fine[..., ::2, ::2], coarse)


def test_layout_survives_casts_and_copies() -> None:
    encoder, decoder = layers((4, 5), dtype=torch.float32)
    for layer in (encoder, decoder, copy.deepcopy(encoder), to_dtype(copy.deepcopy(decoder), torch.float64)):
        assert layer.kernels.rows(slice(1, 5)).is_contiguous()
        assert layer.skip_rows(slice(1, 5)).is_contiguous()
        shared = (
            layer.kernels.rows(slice(1, 5)).untyped_storage().data_ptr()
            == layer.conv.weight.tensor.untyped_storage().data_ptr()
        )
        assert shared
    assert encoder.conv.weight.tensor.shape == (3, 7, 4, 3)
    assert decoder.conv.weight.tensor.shape == (7, 3, 4, 3)


def test_energies_never_make_a_tensor_of_concepts_by_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """No inverse transform, and no tensor as large as (batch, p, *grid)."""
    encoder, _ = layers((5, 5), m=4, p=64, dtype=torch.float32)
    x = torch.randn(2, 4, 48, 48)
    spectrum = Spectrum.of(x, encoder.basis)

    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("an inverse transform")

    monkeypatch.setattr(FourierBasis, "synthesis", refuse)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)), 0)
            return out

    with Watch():
        encoder.energies(spectrum)
    assert largest < 2 * 64 * 48 * 48 / 10


def test_arguments() -> None:
    with pytest.raises(ValueError, match="unknown skip 'soft-gating'; known: 'linear'"):
        ConceptEncoder(3, 4, (5,), skip="soft-gating")
    with pytest.raises(TypeError, match="no_such"):
        ConceptDecoder(3, 4, (5,), no_such=1)
