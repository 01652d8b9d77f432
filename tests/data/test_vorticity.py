"""The solver of the plane against exact solutions of the nonlinear equations, budgets and an independent right-hand side."""

import math

import pytest
import torch
from torch import Tensor

from neuralop_sae.data.vorticity import VorticitySolver, kolmogorov_forcing, solve_vorticity


def axes(n: int) -> tuple[Tensor, Tensor]:
    x = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    return x[:, None], x[None]


def smooth_field(n: int, highest: int, seed: int = 0) -> Tensor:
    """Random vorticity with wavenumbers up to `highest`; any n gives the same function."""
    x, y = axes(n)
    weights = torch.randn(highest + 1, 2 * highest + 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    field = torch.zeros(n, n, dtype=torch.float64)
    for k in range(highest + 1):
        for j in range(-highest, highest + 1):
            if k or j:
                cosine, sine = weights[k, j + highest] / highest
                field += cosine * torch.cos(k * x + j * y) + sine * torch.sin(k * x + j * y)
    return field


def derivative(f: Tensor, axis: int) -> Tensor:
    n = f.shape[axis]
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    return torch.fft.ifft(torch.fft.fft(f, dim=axis) * (1j * (k[:, None] if axis == 0 else k)), dim=axis).real


def velocity(w: Tensor) -> tuple[Tensor, Tensor]:
    n = len(w)
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    square = k[:, None] ** 2 + k**2
    square[0, 0] = torch.inf
    stream = torch.fft.ifft2(torch.fft.fft2(w) / -square).real
    return -derivative(stream, 1), derivative(stream, 0)


@pytest.mark.parametrize("drag", [0.0, 0.3])
def test_vortices_of_one_wavelength_only_decay(drag: float) -> None:
    # Eigenfunctions of the Laplacian: Taylor-Green, and waves along (3, 4), (5, 0), (0, 5) together.
    x, y = axes(32)
    green = torch.cos(2 * x) * torch.cos(2 * y)
    waves = torch.cos(3 * x + 4 * y) + torch.sin(5 * x) + torch.cos(5 * y)
    later = solve_vorticity(torch.stack([green, waves]), 0.7, viscosity=0.05, drag=drag, time_step=0.1)
    for field, exact, square in zip(later, (green, waves), (8, 25), strict=True):
        torch.testing.assert_close(field, math.exp(-(0.05 * square + drag) * 0.7) * exact, rtol=0, atol=1e-12)


def test_the_laminar_flow_under_the_force_is_steady_and_is_what_rest_grows_to() -> None:
    n, viscosity, drag = 24, 0.2, 0.1
    forcing = kolmogorov_forcing(n, 4, 1.5)
    rate = viscosity * 16 + drag
    laminar = forcing / rate
    kept = {"viscosity": viscosity, "drag": drag, "forcing": forcing, "time_step": 0.25}
    torch.testing.assert_close(solve_vorticity(laminar, 3.0, **kept), laminar, rtol=0, atol=1e-13)
    grown = solve_vorticity(torch.zeros(n, n), 0.5, **kept)
    torch.testing.assert_close(grown, (1 - math.exp(-0.5 * rate)) * laminar, rtol=0, atol=1e-13)
    u, v = velocity(laminar)
    torch.testing.assert_close(u, (1.5 * torch.sin(4 * axes(n)[1]) / rate).expand(n, n), rtol=0, atol=1e-12)
    torch.testing.assert_close(v, torch.zeros_like(v), rtol=0, atol=1e-12)


def test_the_nonlinear_term_is_the_truncated_advection() -> None:
    w = smooth_field(64, 10)
    u, v = velocity(w)
    advection = torch.fft.rfft2(-(u * derivative(w, 0) + v * derivative(w, 1)), norm="forward")
    solver = VorticitySolver(32, 10, 0.0, 0.0, torch.zeros(32, 32, dtype=torch.float64), 0.1)
    rate = solver.rate(torch.fft.rfft2(w[::2, ::2], norm="forward"))
    rows = torch.arange(-10, 11)
    torch.testing.assert_close(rate[rows, :11], advection[rows, :11], rtol=0, atol=1e-12)
    assert rate.abs().max() > 0.05
    assert rate[11:-10].abs().max() == rate[:, 11:].abs().max() == rate[0, 0].abs() == 0


def budgets(w: Tensor, forcing: Tensor, viscosity: float, drag: float) -> tuple[Tensor, Tensor]:
    """Time derivatives of energy <u^2 + v^2>/2 and enstrophy <w^2>/2."""
    u, v = velocity(w)
    force = forcing.new_tensor(1.5) * torch.sin(4 * axes(len(w))[1])
    gradient = derivative(w, 0).square() + derivative(w, 1).square()
    energy = (force * u).mean() - viscosity * w.square().mean() - drag * (u.square() + v.square()).mean()
    return energy, (w * forcing).mean() - viscosity * gradient.mean() - drag * w.square().mean()


def energies(w: Tensor) -> Tensor:
    u, v = velocity(w)
    return torch.stack([(u.square() + v.square()).mean() / 2, w.square().mean() / 2])


def test_energy_and_enstrophy_obey_their_budgets() -> None:
    n, h = 32, 2e-3
    forcing = kolmogorov_forcing(n, 4, 1.5)
    kept = {"viscosity": 0.05, "drag": 0.2, "forcing": forcing, "time_step": h}
    w = [smooth_field(n, 6)]
    for _ in range(2):
        w.append(solve_vorticity(w[-1], h, **kept))
    rates = (energies(w[2]) - energies(w[0])) / (2 * h)
    torch.testing.assert_close(rates, torch.stack(budgets(w[1], forcing, 0.05, 0.2)), rtol=1e-4, atol=0)


def test_without_viscosity_energy_and_enstrophy_are_kept_though_the_flow_moves() -> None:
    w = smooth_field(32, 6)
    later = solve_vorticity(w, 2.0, viscosity=0.0, time_step=0.01)
    torch.testing.assert_close(energies(later), energies(w), rtol=1e-6, atol=0)
    assert (later - w).norm() > 0.5 * w.norm()
    # Fourth order in energy, too: the first figure is the time step's error, not aliasing.
    coarse = solve_vorticity(w, 2.0, viscosity=0.0, time_step=0.04)
    assert (energies(coarse) - energies(w)).abs().max() > 30 * (energies(later) - energies(w)).abs().max()


def test_the_time_step_is_of_fourth_order() -> None:
    w = smooth_field(24, 5)
    forcing = kolmogorov_forcing(24)
    fine, *others = (
        solve_vorticity(w, 0.8, viscosity=0.02, drag=0.1, forcing=forcing, time_step=step) for step in (0.005, 0.02, 0.04)
    )
    errors = [(other - fine).norm() for other in others]
    assert errors[0] < 1e-5 * fine.norm()
    assert math.log2(errors[1] / errors[0]) == pytest.approx(4, abs=0.3)


def test_coefficients_do_not_depend_on_the_grid_as_long_as_products_are_free_of_aliasing() -> None:
    found = {}
    for n in (15, 16, 21, 40):
        solver = VorticitySolver(n, 5, 0.02, 0.0, kolmogorov_forcing(n), 0.02)
        found[n] = solver.advance(torch.fft.rfft2(smooth_field(n, 5), norm="forward"), 10)[:6, :6]
    torch.testing.assert_close(found[16], found[40], rtol=0, atol=1e-13)
    torch.testing.assert_close(found[21], found[40], rtol=0, atol=1e-13)
    assert (found[15] - found[40]).abs().max() > 1e-6  # 3 x 5 = 15: a grid too coarse by one point


def test_steps_are_shortened_to_fit_and_none_leaves_the_resolved_part() -> None:
    w = smooth_field(24, 5)
    whole = solve_vorticity(w, 0.1, viscosity=0.1, time_step=0.05)
    assert torch.equal(solve_vorticity(w, 0.1, viscosity=0.1, time_step=0.07), whole)
    x, y = axes(24)
    noisy = w + 3 + torch.cos(8 * x) * torch.cos(y)
    torch.testing.assert_close(solve_vorticity(noisy, 0.0, viscosity=0.1), w, rtol=0, atol=1e-13)
    assert solve_vorticity(w.float(), 0.1, viscosity=0.1).dtype == torch.float64


def test_wrong_arguments() -> None:
    w = torch.zeros(8, 8)
    for wrong in (torch.zeros(8), torch.zeros(8, 9), torch.zeros(3, 3), torch.zeros(8, 8, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"vorticity is torch.*; pass real \(..., N, N\), N at least 4"):
            solve_vorticity(wrong, 1.0, viscosity=0.1)
    with pytest.raises(ValueError, match=r"forcing has shape \(9, 9\); pass \(8, 8\)"):
        solve_vorticity(w, 1.0, viscosity=0.1, forcing=torch.zeros(9, 9))
    right = {"duration": 1.0, "viscosity": 0.1, "drag": 0.0, "time_step": 0.1}
    for name, value in {"duration": -1.0, "viscosity": -0.1, "drag": math.nan, "time_step": 0.0}.items():
        with pytest.raises(ValueError, match=f"{name} is"):
            solve_vorticity(w, **{**right, name: value})
    with pytest.raises(ValueError, match="resolution is 8; it must be an integer of at least 9"):
        kolmogorov_forcing(8, 4)


def test_a_flow_that_blows_up_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"not finite after 20: .* shorter than 1"):
        solve_vorticity(100 * smooth_field(24, 5), 20.0, viscosity=0.0, time_step=1.0)
