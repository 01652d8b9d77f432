"""FourierBasis against direct sums, closed forms, neuralop's SpectralConv, and the shipped contract."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers import FourierBasis, bases
from neuralop_sae.testing import TOLERANCE, assert_equal, check_basis

# Odd and even numbers of modes and grid sizes; fewer, as many, and more modes than the grid holds.
CASES = [
    ((7,), (12,)),
    ((7,), (13,)),
    ((8,), (8,)),
    ((8,), (9,)),
    ((11,), (6,)),
    ((1,), (5,)),
    ((5, 5), (12, 9)),
    ((8, 6), (8, 6)),
    ((8, 6), (9, 7)),
    ((9, 9), (8, 8)),
    ((12, 13), (7, 6)),
    ((1, 2), (4, 4)),
    ((4, 3, 5), (6, 7, 8)),
    ((4, 4, 4), (4, 4, 4)),
    ((7, 6, 9), (5, 4, 3)),
]
DTYPES = [torch.float32, torch.float64]


def exponentials(basis: FourierBasis, grid: tuple[int, ...]) -> Tensor:
    """exp(2 pi i k.s), (*mode_shape, *grid), from the definition."""
    phase = torch.zeros((*basis.mode_shape, *grid), dtype=torch.float64)
    for axis, (frequencies, size) in enumerate(zip(basis.frequencies(), grid, strict=True)):
        k = torch.tensor(list(frequencies), dtype=torch.float64)
        s = torch.arange(size, dtype=torch.float64) / size
        shape = [1] * (2 * basis.n_dim)
        shape[axis], shape[basis.n_dim + axis] = len(k), size
        phase = phase + torch.outer(k, s).reshape(shape)
    return torch.exp(2j * math.pi * phase)


def closed_form_weights(basis: FourierBasis, grid: tuple[int, ...]) -> Tensor:
    """0 where the grid does not hold the mode, 1 where the last frequency is its own negative, else 2."""
    weights = torch.zeros(basis.mode_shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in basis.mode_shape)).reshape(-1, basis.n_dim).tolist():
        k = [frequencies[i] for frequencies, i in zip(basis.frequencies(), index, strict=True)]
        held = all(2 * abs(a) < n or 2 * a == -n for a, n in zip(k[:-1], grid[:-1], strict=True)) and 2 * k[-1] <= grid[-1]
        weights[tuple(index)] = held * (1 if k[-1] == 0 or 2 * k[-1] == grid[-1] else 2)
    return weights


@pytest.mark.parametrize(("modes", "grid"), CASES)
def test_transforms_are_the_sums_that_define_them(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    basis, n = FourierBasis(modes), len(modes)
    waves, weights = exponentials(basis, grid), closed_form_weights(basis, grid)
    field = torch.randn(2, *grid, dtype=torch.float64)
    c = torch.randn(2, *basis.mode_shape, dtype=torch.complex128)
    dims = list(range(-n, 0))
    expected = torch.tensordot(field.to(waves.dtype), waves.conj(), dims=(dims, dims)) / math.prod(grid) * (weights > 0)
    assert_equal("analysis", basis.analysis(field), expected, scale=1.0)
    written = torch.tensordot(c * weights, waves, dims=(dims, list(range(n)))).real
    assert_equal("synthesis", basis.synthesis(c, grid), written)
    assert torch.equal(basis.weights(grid, like=field), weights)


@pytest.mark.parametrize(("modes", "grid"), CASES)
def test_contract(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    resolving = [tuple(n + extra for n in modes) for extra in (2, 3)]
    check_basis(FourierBasis(modes), shapes=[grid, *resolving])


def test_contract_with_default_shapes() -> None:
    check_basis(lambda: FourierBasis((4, 5)))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=3))
@settings(derandomize=True, max_examples=10, deadline=None)
def test_contract_on_drawn_modes_and_grids(axes: list[tuple[int, int]]) -> None:
    modes, grid = zip(*axes, strict=True)
    check_basis(FourierBasis(modes), shapes=[grid, tuple(n + 2 for n in modes), tuple(n + 3 for n in modes)])


@pytest.mark.parametrize(("modes", "grid"), [case for case in CASES if all(n % 2 == 0 for n in case[1][:-1])])
@pytest.mark.parametrize("factorization", [None, "tucker"])
def test_agrees_with_spectral_conv_on_even_grids(
    modes: tuple[int, ...], grid: tuple[int, ...], factorization: str | None
) -> None:
    basis = FourierBasis(modes)
    conv = SpectralConv(3, 4, modes, factorization=factorization, implementation="factorized")
    x = torch.randn(2, 3, *grid)
    z = torch.einsum("bi...,io...->bo...", basis.analysis(x), conv.weight.to_tensor())
    assert_equal("SpectralConv", basis.synthesis(z, grid) + conv.bias, conv(x))


def test_frequencies_and_shape() -> None:
    basis = FourierBasis((5, 4, 7))
    assert [list(k) for k in basis.frequencies()] == [[-2, -1, 0, 1, 2], [-2, -1, 0, 1], [0, 1, 2, 3]]
    assert basis.mode_shape == (5, 4, 4)
    assert basis.n_dim == 3
    assert FourierBasis(6).mode_shape == (4,)
    assert bases.get("Fourier") is FourierBasis


@pytest.mark.parametrize("size", [8, 9, 16])
def test_energy_of_a_cosine(size: int) -> None:
    """mean cos^2 = 1/2 inside, 1 at frequency zero and at the Nyquist frequency of an even grid."""
    basis, s = FourierBasis(9), torch.arange(size, dtype=torch.float64) / size
    for k in range(size // 2 + 1):
        if k > 4:
            continue
        c = basis.analysis(torch.cos(2 * math.pi * k * s))
        expected = 1.0 if k == 0 or 2 * k == size else 0.5
        assert basis.energy(c, (size,)).item() == pytest.approx(expected, abs=1e-12)
        assert c[k].real.item() == pytest.approx(1.0 if expected == 1 else 0.5, abs=1e-12)


def test_first_column_counts_a_pair_once() -> None:
    """cos(2 pi 2 s1) has energy 1/2 though the half spectrum holds it twice; naive Parseval is the same only because the
    pair is Hermitian: coefficients that are not are projected first."""
    basis = FourierBasis((5, 5))
    s = torch.arange(12, dtype=torch.float64) / 12
    c = basis.analysis(torch.cos(2 * math.pi * 2 * s)[:, None].expand(12, 10).contiguous())
    assert basis.energy(c).item() == pytest.approx(0.5, abs=1e-12)
    lonely = torch.zeros(5, 3, dtype=torch.complex128)
    lonely[4, 0] = 1.0  # writes cos(2 pi 2 s1): Re(c e), the energy of which is 1/2, not 1
    assert basis.energy(lonely).item() == pytest.approx(0.5, abs=1e-12)
    lonely[0, 0] = -1.0  # minus its partner: nothing is written
    assert basis.energy(lonely).item() == pytest.approx(0.0, abs=1e-12)
    assert basis.synthesis(lonely, (9, 9)).abs().max() < 1e-12


def test_even_modes_unpaired_frequency() -> None:
    """Frequency -n/2 in the first column writes Re(c e), and comes back as c/2."""
    basis = FourierBasis((4, 4))
    c = torch.zeros(4, 3, dtype=torch.complex128)
    c[0, 0] = torch.tensor(1 + 2j)
    s = torch.arange(10, dtype=torch.float64) / 10
    expected = (torch.cos(4 * math.pi * s) + 2 * torch.sin(4 * math.pi * s))[:, None].expand(10, 7)
    assert_equal("Re(c e)", basis.synthesis(c, (10, 7)), expected.contiguous())
    assert_equal("c/2", basis.analysis(expected.contiguous()), c / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [((16,), (25,)), ((16, 13), (21, 32)), ((7, 8, 9), (10, 9, 8))])
def test_coefficients_equal_on_two_grids(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
    """An analytic band-limited function, sampled on two grids."""
    basis = FourierBasis((5,) * len(shapes[0]))

    def sample(grid: tuple[int, ...]) -> Tensor:
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in grid), indexing="ij")
        phase = torch.stack([(i + 1) % 3 * 2 * math.pi * s for i, s in enumerate(axes)]).sum(0)
        return (0.7 + torch.cos(phase + 0.3) + torch.sin(2 * math.pi * axes[-1]) * torch.cos(2 * math.pi * axes[0])).to(dtype)

    first, second = (basis.analysis(sample(grid)) for grid in shapes)
    assert_equal("coefficients", first, second)
    mean = 0.7  # sin times cos of one variable has no mean, of two neither
    constant = first[(*(n // 2 for n in basis.n_modes[:-1]), 0)]
    assert constant.real.item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(("old", "new"), [(8, 12), (12, 8), (9, 8), (8, 9), (8, 8)])
def test_resample_keeps_what_both_grids_resolve(old: int, new: int) -> None:
    basis = FourierBasis(1)  # resampling does not depend on the modes

    def s(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float64) / n

    for k in range(old // 2 + 1):
        for wave in (torch.cos, torch.sin):
            kept = old == new or 2 * k < min(old, new)
            expected = wave(2 * math.pi * k * s(new)) * kept
            assert_equal(f"k={k}", basis.resample(wave(2 * math.pi * k * s(old)), (new,)), expected, scale=1.0)


def test_resample_is_differentiable_and_linear_in_each_dimension() -> None:
    basis = FourierBasis((3, 3))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: basis.resample(f, (6, 7)), (x,))
    assert basis.resample(x, [5, 4]) is x


def test_full_round_trip_of_any_field() -> None:
    """With at least as many modes as points the transform is invertible on every field, Nyquist included."""
    for modes, grid in [((8, 8), (8, 8)), ((9, 9), (8, 7)), ((20, 20), (15, 12)), ((8, 8, 9), (6, 7, 8))]:
        x = torch.randn(2, *grid, dtype=torch.float64)
        basis = FourierBasis(modes)
        assert_equal(f"{modes} {grid}", basis.synthesis(basis.analysis(x), grid), x)
        assert_equal(f"Parseval {modes} {grid}", basis.energy(basis.analysis(x), grid), x.square().flatten(1).mean(1))


def test_gradcheck_complete() -> None:
    basis = FourierBasis((4, 5))
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    c = torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(basis.analysis, (x,))
    assert torch.autograd.gradcheck(lambda c: basis.synthesis(c, (6, 5)), (c,))
    assert torch.autograd.gradcheck(lambda c: basis.gram(c, (4, 4)), (c,))


def test_weights_made_in_inference_mode_serve_training() -> None:
    basis = FourierBasis((3, 4))
    with torch.inference_mode():
        basis.energy(torch.randn(3, 3, dtype=torch.cfloat))
    c = torch.randn(3, 3, dtype=torch.cfloat, requires_grad=True)
    basis.energy(c).backward()
    assert c.grad is not None
    assert c.grad.isfinite().all()


def test_copies_and_config() -> None:
    basis = FourierBasis([4, 5])
    basis.weights((8, 8), like=torch.zeros(()))
    x = torch.randn(8, 8)
    for other in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis)), FourierBasis([4, 5])):
        assert torch.equal(other.analysis(x), basis.analysis(x))
    assert basis.config() == {"n_modes": [4, 5]}
    assert repr(basis) == "FourierBasis(n_modes=(4, 5))"


@pytest.mark.parametrize("modes", [(), (0,), (4, 0), (-3,)])
def test_bad_modes(modes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="n_modes needs one positive number per dimension"):
        FourierBasis(modes)


def test_bad_grids_and_coefficients() -> None:
    basis = FourierBasis((4, 4))
    c = torch.zeros(4, 3, dtype=torch.cfloat)
    for shape in [(8,), (8, 8, 8), (8, 0)]:
        with pytest.raises(ValueError, match="a grid of 2 positive sizes is needed, got"):
            basis.synthesis(c, shape)
    for call in (lambda: basis.synthesis(c[:3], (8, 8)), lambda: basis.gram(c[:, :2])):
        with pytest.raises(ValueError, match=r"coefficients must end in the mode shape \(4, 3\)"):
            call()


def test_on_device(device: torch.device) -> None:
    """The transforms of every device agree, also for coefficients that are not Hermitian in the first column."""
    for modes, grid in CASES[::3]:
        basis = FourierBasis(modes)
        x = torch.randn(2, *grid, dtype=torch.float64)
        c = torch.randn(2, *basis.mode_shape, dtype=torch.complex128)
        assert_equal("analysis", basis.analysis(x.to(device)).cpu(), basis.analysis(x), scale=1.0)
        assert_equal("synthesis", basis.synthesis(c.to(device), grid).cpu(), basis.synthesis(c, grid))
        assert basis.weights(grid, like=x.to(device)).device.type == device.type


def test_tolerances_are_one_per_dtype() -> None:
    assert {torch.float32: 1e-5, torch.float64: 1e-10} == TOLERANCE
