"""Energies and norms without an inverse transform, against the quadrature of synthesised fields."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers import FourierBasis, Spectrum, moments
from neuralop_sae.layers.factorized import MixedKernels
from neuralop_sae.layers.kernels import Kernels, kernels_of
from neuralop_sae.layers.moments import EnergyForm, energies, kernel_norms
from neuralop_sae.testing import assert_equal

M, P = 3, 7
LIKE = torch.empty((), dtype=torch.float64)
# Modes and grid: all modes held (odd, even, both), the Nyquist frequency on the grid, and grids that hold fewer modes.
GRIDS = [
    ((5,), (11,)),
    ((6,), (12,)),
    ((6,), (6,)),
    ((9,), (6,)),
    ((8,), (5,)),
    ((5, 5), (9, 8)),
    ((4, 6), (9, 8)),
    ((4, 6), (4, 6)),
    ((9, 9), (6, 7)),
    ((8, 8), (5, 4)),
    ((3, 4, 4), (5, 4, 6)),
    ((5, 4, 6), (4, 3, 4)),
]
# Ranks in the encoder's order of axes (m, p, *modes) for two dimensions.
RANKS: dict[str, dict[str, Any]] = {
    "low": {"tucker": (2, 2, 3, 2), "cp": 2, "tt": (1, 2, 2, 2, 1)},
    "high": {"tucker": (3, 7, 3, 2), "cp": 20, "tt": (1, 3, 4, 2, 1)},
}

grids = pytest.mark.parametrize(("modes", "grid"), GRIDS, ids=str)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def fields(basis: FourierBasis, coefficients: Tensor, grid: tuple[int, ...]) -> Tensor:
    """``(..., K)`` -> ``(..., *grid)``."""
    return basis.synthesis(coefficients.reshape(*coefficients.shape[:-1], *basis.mode_shape), grid)


def make(form: str, axis: int, n_modes: tuple[int, ...], rank: Any = None) -> Kernels:
    shape, arguments = ((P, M) if axis == 0 else (M, P)), {}
    if form != "dense":
        order = isinstance(rank, tuple) and axis == 0 and form == "tucker"
        rank = (rank[1], rank[0], *rank[2:]) if order else rank
        arguments = {"factorization": form, "rank": rank, "implementation": "factorized"}
    conv = SpectralConv(*shape, n_modes, **arguments)
    for parameter in conv.weight.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.complex128 if parameter.is_complex() else torch.float64)
    kernels = kernels_of(conv.weight, axis)
    kernels.lay_out_()
    return kernels


def table(kernels: Kernels) -> Tensor:
    """``(p, m, *modes)`` from the reconstructed weight."""
    weight = kernels.weight.to_tensor().detach()
    return weight if kernels.axis == 0 else weight.transpose(0, 1)


def precodes(kernels: Kernels, skip: Tensor | None, bias: Tensor, x: Tensor, basis: FourierBasis) -> Tensor:
    """Every pre-code on the grid, ``(B, p, *grid)``."""
    z = basis.synthesis(torch.einsum("cm...,bm...->bc...", table(kernels), basis.analysis(x)), x.shape[2:])
    if skip is not None:
        z = z + torch.einsum("cm,bm...->bc...", skip, x)
    return z + bias.view(-1, *(1,) * basis.n_dim)


def check_energies(kernels: Kernels, basis: FourierBasis, grid: tuple[int, ...], *, skip: bool) -> None:
    x = torch.randn(2, M, *grid, dtype=torch.float64) + torch.tensor([0.5, -1.0, 2.0]).double().view(-1, *(1,) * len(grid))
    pointwise = torch.randn(P, M, dtype=torch.float64) if skip else None
    bias = torch.randn(P, dtype=torch.float64)
    form = EnergyForm(basis, grid, LIKE)
    mine = energies(kernels, pointwise, bias, Spectrum.of(x, basis), basis, form)
    dense = precodes(kernels, pointwise, bias, x, basis).flatten(2)
    assert_equal("mean", mine.mean, dense.mean(2))
    assert_equal("mean square", mine.mean_square, dense.square().mean(2))
    assert not mine.mean_square.requires_grad


def check_norms(kernels: Kernels, n_modes: tuple[int, ...], *, skip: bool) -> None:
    """Send a unit impulse, as a field on a grid, through kernel and pointwise part."""
    basis, grid = FourierBasis(n_modes), tuple(n + 3 for n in n_modes)
    pointwise = torch.randn(P, M, dtype=torch.float64) if skip else None
    delta = basis.synthesis(torch.ones(basis.mode_shape, dtype=torch.complex128), grid)
    delta = delta / delta.square().mean().sqrt()
    atoms = basis.synthesis(table(kernels) * basis.analysis(delta), grid)
    if pointwise is not None:
        atoms = atoms + pointwise.view(P, M, *(1,) * basis.n_dim) * delta
    expected = atoms.square().flatten(2).mean(2).sum(1).sqrt()
    norms = kernel_norms(kernels, pointwise, EnergyForm(basis, None, LIKE))
    assert_equal("norms", norms, expected)
    assert not norms.requires_grad


@grids
def test_form_is_the_inner_product_of_fields(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    """For any coefficients, also such as no real field has."""
    basis = FourierBasis(modes)
    form = EnergyForm(basis, grid, LIKE)
    a, b = draw(2, 3, len(form.own)), draw(2, 4, len(form.own))
    f, g = (fields(basis, c, grid).flatten(2) for c in (a, b))
    assert_equal("products", form.products(a, b), f @ g.mT / f.shape[2])
    h = fields(basis, a.conj().resolve_conj(), grid).flatten(2)
    assert_equal("products of a lazy conjugate", form.products(a.conj(), b), h @ g.mT / f.shape[2])
    assert_equal("mean", form.mean(a.permute(2, 0, 1)), f.mean(2))
    assert_equal("of", form.of(a.permute(2, 0, 1).contiguous()), f.square().mean(2))


@pytest.mark.parametrize("modes", [(5,), (6,), (5, 5), (4, 6), (4, 3, 4)], ids=str)
def test_form_on_the_continuum_is_that_of_any_fine_grid(modes: tuple[int, ...]) -> None:
    basis = FourierBasis(modes)
    form, c = EnergyForm(basis, None, LIKE), draw(4, math.prod(basis.mode_shape))
    for extra in (3, 6):
        f = fields(basis, c, tuple(n + extra for n in modes)).flatten(1)
        assert_equal("products", form.products(c, c), f @ f.mT / f.shape[1])
        assert_equal("mean", form.mean(c.T), f.mean(1))
        assert_equal("of", form.of(c.T.contiguous()), f.square().mean(1))


@grids
def test_constant_and_inverse(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    """The constant's coefficients synthesise to one; the inverse undoes analysis after synthesis."""
    basis = FourierBasis(modes)
    form = EnergyForm(basis, grid, LIKE)
    constant = draw(len(form.own)).zero_().index_copy(0, form.constant_modes, form.constant)
    assert_equal("constant", fields(basis, constant, grid), torch.ones(grid, dtype=torch.float64))
    f = fields(basis, draw(3, len(form.own)), grid)
    lifted = basis.analysis(f).flatten(1) * form.inverse
    assert_equal("inverse", fields(basis, lifted, grid), f)


@pytest.mark.parametrize("modes", [(5,), (6,), (5, 5), (4, 6), (4, 3, 4)], ids=str)
def test_impulse_has_norm_one(modes: tuple[int, ...]) -> None:
    basis = FourierBasis(modes)
    unit = basis.impulse(like=LIKE).flatten()
    assert (unit == unit[0]).all()
    field = fields(basis, unit, tuple(n + 3 for n in modes))
    assert_equal("norm", field.square().mean(), torch.ones((), dtype=torch.float64))
    assert field.argmax() == 0


@pytest.mark.parametrize("skip", [True, False])
@grids
def test_energies_of_dense_kernels(modes: tuple[int, ...], grid: tuple[int, ...], skip: bool) -> None:
    check_energies(make("dense", 1, modes), FourierBasis(modes), grid, skip=skip)


class Routes:
    """Which of the two ways the energies of mixed kernels went, and in how many chunks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[str] = []
        for name in ("_mixed_energies", "_chunk_energies"):
            patch.setattr(moments, name, self._watch(name, getattr(moments, name)))

    def _watch(self, name: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            self.taken.append(name)
            return function(*args)

        return run


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> Routes:
    return Routes(monkeypatch)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@pytest.mark.parametrize(("modes", "grid"), [g for g in GRIDS if len(g[0]) == 2], ids=str)
def test_energies_of_few_templates_are_a_quadratic_form(
    modes: tuple[int, ...], grid: tuple[int, ...], form: str, skip: bool, routes: Routes
) -> None:
    check_energies(make(form, 1, modes, RANKS["low"][form]), FourierBasis(modes), grid, skip=skip)
    assert routes.taken == ["_mixed_energies"]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@pytest.mark.parametrize(("modes", "grid"), [((3, 2), (7, 6)), ((2, 2), (4, 5)), ((3, 2), (2, 3))], ids=str)
def test_energies_of_many_templates_go_through_the_modes(
    modes: tuple[int, ...], grid: tuple[int, ...], form: str, skip: bool, routes: Routes
) -> None:
    check_energies(make(form, 1, modes, RANKS["high"][form]), FourierBasis(modes), grid, skip=skip)
    assert routes.taken == ["_chunk_energies"]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("form", ["dense", "tucker", "cp", "tt"])
def test_the_two_routes_are_chosen_by_size_alone(form: str, skip: bool, routes: Routes) -> None:
    """One set of kernels through both: the quadratic form and, hidden from it, the modes."""
    basis, x = FourierBasis((4, 5)), torch.randn(2, M, 7, 6, dtype=torch.float64)
    kernels = make(form, 1, (4, 5), RANKS["low"].get(form))
    pointwise, bias = (torch.randn(P, M, dtype=torch.float64) if skip else None), torch.randn(P, dtype=torch.float64)
    energy_form = EnergyForm(basis, (7, 6), LIKE)
    field = moments._Field.of(Spectrum.of(x, basis), basis, energy_form)
    mean, mean_square = moments._chunk_energies(kernels, pointwise, bias, field, energy_form, slice(None))
    either = energies(kernels, pointwise, bias, Spectrum.of(x, basis), basis, energy_form)
    assert_equal("mean", either.mean, mean)
    assert_equal("mean square", either.mean_square, mean_square)
    assert routes.taken == ["_chunk_energies", "_mixed_energies" if isinstance(kernels, MixedKernels) else "_chunk_energies"]


@pytest.mark.parametrize("n_concepts", [1, 3, 7])
@pytest.mark.parametrize("skip", [True, False])
def test_energies_in_chunks_of_concepts(n_concepts: int, skip: bool, routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, basis, grid = (3, 2), FourierBasis((3, 2)), (7, 6)
    monkeypatch.setattr(moments, "chunk_bytes", lambda _: n_concepts * 8 * 2 * 6)  # batch of 2, 6 modes
    for form in ("dense", "tucker", "cp", "tt"):
        routes.taken.clear()
        check_energies(make(form, 1, modes, RANKS["high"].get(form)), basis, grid, skip=skip)
        assert routes.taken == ["_chunk_energies"] * math.ceil(P / n_concepts)


@pytest.mark.parametrize("n_bytes", [1, 150, 10**6])
@pytest.mark.parametrize("skip", [True, False])
def test_quadratic_form_in_chunks_of_concepts(
    n_bytes: int, skip: bool, routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    vectors = moments._vectors

    def watch(*args: Any) -> Tensor:
        out = vectors(*args)
        sizes.append(len(out))
        return out

    monkeypatch.setattr(moments, "_vectors", watch)
    monkeypatch.setattr(moments, "chunk_bytes", lambda _: n_bytes)
    check_energies(make("cp", 1, (5, 5), 2), FourierBasis((5, 5)), (9, 8), skip=skip)
    assert routes.taken == ["_mixed_energies"]
    size = 2 * 2 + (M if skip else 0) + 1
    chunk = min(P, max(1, n_bytes // (4 * 2 * size)))
    assert sizes == [min(chunk, P - first) for first in range(0, P, chunk)]


def test_energies_of_a_field_without_what_the_modes_hold() -> None:
    """High frequencies reach the energy through the pointwise part alone: closed form for a cosine."""
    basis, grid = FourierBasis((3,)), (16,)
    wave = torch.cos(2 * math.pi * 5 * torch.arange(16, dtype=torch.float64) / 16)
    x = torch.stack([2 * wave, -wave, torch.full((16,), 3.0, dtype=torch.float64)])[None]
    kernels, skip = make("dense", 1, (3,)), torch.randn(P, M, dtype=torch.float64)
    kernels.scale_(torch.zeros(P, dtype=torch.float64))
    bias = torch.randn(P, dtype=torch.float64)
    out = energies(kernels, skip, bias, Spectrum.of(x, basis), basis, EnergyForm(basis, grid, LIKE))
    mean = 3 * skip[:, 2] + bias
    assert_equal("mean", out.mean[0], mean)
    assert_equal("mean square", out.mean_square[0], mean.square() + (2 * skip[:, 0] - skip[:, 1]).square() / 2)


@pytest.mark.parametrize("form", ["dense", "cp"])
def test_energies_are_not_negative(form: str, routes: Routes) -> None:
    """Where kernels undo the pointwise part, rounding leaves energies of either sign, whose roots would be NaN."""
    basis, grid = FourierBasis((5, 5)), (8, 9)
    skip, kernels = torch.randn(P, M, dtype=torch.float64), make(form, 1, (5, 5), 3)
    with torch.no_grad():
        if form == "dense":
            kernels.weight.tensor.copy_(-skip.mT[:, :, None, None].expand(kernels.weight.shape))
        else:
            kernels.weight.weights.fill_(1)
            values = (torch.eye(M), -skip, torch.ones(()), torch.ones(()))
            for factor, value in zip(kernels.weight.factors, values, strict=True):
                factor.copy_(value.expand(factor.shape))
    x = fields(basis, draw(20, M, kernels.n_modes), grid)
    bias = torch.zeros(P, dtype=torch.float64)
    out = energies(kernels, skip, bias, Spectrum.of(x, basis), basis, EnergyForm(basis, grid, LIKE))
    assert routes.taken == ["_chunk_energies" if form == "dense" else "_mixed_energies"]
    assert (out.mean_square >= 0).all()
    assert out.mean_square.max() < 1e-12


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("modes", [(5,), (6,), (5, 5), (4, 6), (4, 3, 4)], ids=str)
def test_norms_of_dense_kernels(modes: tuple[int, ...], axis: int, skip: bool) -> None:
    check_norms(make("dense", axis, modes), modes, skip=skip)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@pytest.mark.parametrize("modes", [(5, 5), (4, 6)], ids=str)
def test_norms_of_mixed_kernels(modes: tuple[int, ...], form: str, axis: int, skip: bool, rank: str) -> None:
    check_norms(make(form, axis, modes, RANKS[rank][form]), modes, skip=skip)


@pytest.mark.parametrize("form", ["dense", "tucker", "cp", "tt"])
def test_norms_in_chunks(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = make(form, 0, (4, 5), RANKS["low"].get(form))
    row = 8 * (kernels.rank if isinstance(kernels, MixedKernels) else kernels.n_modes * M)
    for n_bytes in (1, 3 * row, 7 * row):
        monkeypatch.setattr(moments, "chunk_bytes", lambda _, n_bytes=n_bytes: n_bytes)
        check_norms(kernels, (4, 5), skip=True)
        check_norms(kernels, (4, 5), skip=False)
