import math

import numpy as np
import pytest
import torch

from neuralop_sae.analysis.calculus import Globe, PeriodicBox, WalledBox
from neuralop_sae.analysis.physics import apply_physics, compute_physics, quantities, register_physics
from neuralop_sae.data.darcy import solve_darcy

SIDE = 2 * math.pi
BOX = PeriodicBox([SIDE, SIDE])


def taylor_green(n: int = 16):
    s = SIDE * torch.arange(n, dtype=torch.float64) / n
    x, y = torch.meshgrid(s, s, indexing="ij")
    u, v = torch.sin(x) * torch.cos(y), -torch.cos(x) * torch.sin(y)
    return x, y, {"u": u[None], "v": v[None]}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_taylor_green_vortices():
    x, y, flow = taylor_green()
    vorticity = 2 * torch.sin(x) * torch.sin(y)
    close(compute_physics("vorticity", flow, BOX)[0], vorticity)
    close(compute_physics("enstrophy", flow, BOX)[0], vorticity.square() / 2)
    close(compute_physics("divergence", flow, BOX)[0], torch.zeros_like(x))
    energy = ((torch.sin(x) * torch.cos(y)).square() + (torch.cos(x) * torch.sin(y)).square()) / 2
    close(compute_physics("kinetic_energy", flow, BOX)[0], energy)
    strain = (2 * torch.cos(x) * torch.cos(y)).abs()
    close(compute_physics("strain", flow, BOX)[0], strain)
    close(compute_physics("okubo_weiss", flow, BOX)[0], strain.square() - vorticity.square())


def test_velocity_follows_from_vorticity():
    x, y, flow = taylor_green()
    given = {"vorticity": 2 * (torch.sin(x) * torch.sin(y))[None]}
    for name in ("u", "v"):
        close(compute_physics(name, given, BOX), flow[name])
    close(compute_physics("kinetic_energy", given, BOX), compute_physics("kinetic_energy", flow, BOX))
    close(compute_physics("okubo_weiss", given, BOX), compute_physics("okubo_weiss", flow, BOX))


def test_shear_and_divergence_have_their_signs():
    s = SIDE * torch.arange(16, dtype=torch.float64) / 16
    x, y = torch.meshgrid(s, s, indexing="ij")
    flow = {"u": torch.sin(y)[None], "v": torch.sin(2 * x)[None]}
    close(compute_physics("vorticity", flow, BOX)[0], 2 * torch.cos(2 * x) - torch.cos(y))
    close(compute_physics("strain", flow, BOX)[0], (2 * torch.cos(2 * x) + torch.cos(y)).abs())
    outward = {"u": torch.sin(x)[None], "v": torch.sin(y)[None]}
    close(compute_physics("divergence", outward, BOX)[0], torch.cos(x) + torch.cos(y))


def test_the_sphere_takes_radians_or_metres():
    globe, radius = Globe("equiangular"), 6.371e6
    earth = Globe("equiangular", radius)
    up = globe.places((17, 32))
    wind = {"u": 20 * (up[0].square() + up[1].square()).sqrt()[None], "v": torch.zeros(1, 17, 32, dtype=torch.float64)}
    vorticity = compute_physics("vorticity", wind, earth)
    torch.testing.assert_close(vorticity[0], 2 * 20 / radius * up[2], rtol=0, atol=1e-18)
    torch.testing.assert_close(compute_physics("vorticity", wind, globe), vorticity * radius)
    assert compute_physics("strain", wind, earth).max() < 1e-17


def test_gradient_and_flux_of_a_scalar():
    x, _, flow = taylor_green()
    fields = {**flow, "scalar": torch.sin(2 * x)[None]}
    close(compute_physics("gradient_magnitude", fields, BOX)[0], (2 * torch.cos(2 * x)).abs())
    flux = compute_physics("flux", fields, BOX)
    close(flux, torch.stack([fields["scalar"] * flow["u"], fields["scalar"] * flow["v"]], 1))


def test_darcy_flux_through_layers_is_constant():
    """One-dimensional flow through layers: u is continuous with kinks between the points, a du/dx the same everywhere."""
    a = torch.where(torch.arange(20) % 7 < 3, 3.0, 12.0).double()
    resistance = (1 / a[1:] + 1 / a[:-1]) / 2
    u = torch.cat([torch.zeros(1), resistance.cumsum(0) / 20])
    fields = {"coefficient": a[None, :, None].expand(1, 20, 6), "solution": u[None, :, None].expand(1, 20, 6)}
    flux = compute_physics("darcy_flux", fields, WalledBox([1.0, 1.0]))
    close(flux[0, 0], torch.full((20, 6), -1.0, dtype=torch.float64))
    close(flux[0, 1], torch.zeros(20, 6, dtype=torch.float64))
    close(compute_physics("darcy_speed", fields, WalledBox([1.0, 1.0]))[0], torch.ones(20, 6, dtype=torch.float64))


def test_darcy_flux_is_of_second_order_where_the_coefficient_is_smooth():
    def error(n: int) -> float:
        s = torch.arange(n, dtype=torch.float64) / n
        x, y = torch.meshgrid(s, s, indexing="ij")
        fields = {"coefficient": (2 + torch.sin(3 * x) * y)[None], "solution": torch.exp(x * y)[None]}
        exact = -fields["coefficient"] * torch.stack([y * torch.exp(x * y), x * torch.exp(x * y)])
        return float((compute_physics("darcy_flux", fields, WalledBox([1.0, 1.0]))[0] - exact).abs().max())

    assert 3.5 < error(32) / error(64) < 4.5


def test_darcy_flux_carries_what_the_source_makes():
    """Out of a square inside the domain flows the integral of f = 1, whatever the coefficient."""
    generator = np.random.default_rng(0)
    coefficient = np.where(generator.random((9, 9)).repeat(8, 0).repeat(8, 1)[:65, :65] > 0.5, 12.0, 3.0)
    fields = {"coefficient": torch.from_numpy(coefficient)[None], "solution": torch.from_numpy(solve_darcy(coefficient))[None]}
    flux = compute_physics("darcy_flux", fields, WalledBox([1.0, 1.0], endpoint=True))[0]
    inner = slice(16, 49)  # 0.25 to 0.75
    sides = [flux[0, 48, inner], -flux[0, 16, inner], flux[1, inner, 48], -flux[1, inner, 16]]
    outflow = sum(float(torch.trapezoid(side)) / 64 for side in sides)
    assert outflow == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(("calculus", "wraps"), [(PeriodicBox([1.0, 1.0]), True), (WalledBox([1.0, 1.0]), False)])
def test_distance_to_an_interface_along_the_grid(calculus, wraps):
    coefficient = torch.full((1, 20, 8), 3.0)
    coefficient[:, 6:] = 12.0
    x = (torch.arange(20) + 0.5) / 20
    signed = x - 6 / 20
    if wraps:
        signed = torch.where(x > 0.3, torch.minimum(signed, 1 - x), -torch.minimum(-signed, x))
    found = compute_physics("interface_distance", {"coefficient": coefficient}, calculus)
    torch.testing.assert_close(found[0], signed[:, None].expand(20, 8), rtol=0, atol=1e-6)


def test_a_sample_of_one_phase_has_no_interface():
    coefficient = torch.full((2, 8, 8), 3.0)
    coefficient[0, 3] = 12.0
    with pytest.raises(ValueError, match=r"no interface in samples \[1\]"):
        compute_physics("interface_distance", {"coefficient": coefficient}, WalledBox([1.0, 1.0]))


def test_quantities_of_ones_own():
    @register_physics("test_circulation")
    def circulation(vorticity, calculus):
        assert calculus is BOX
        return vorticity.mean((1, 2))

    _, _, flow = taylor_green()
    assert "test_circulation" in quantities
    close(compute_physics("test_circulation", flow, BOX), torch.zeros(1, dtype=torch.float64))
    close(
        apply_physics("own", lambda u, enstrophy: u + enstrophy, flow, BOX),
        flow["u"] + compute_physics("enstrophy", flow, BOX),
    )
    with pytest.raises(ValueError, match="registered already"):
        register_physics("vorticity")(circulation)


def test_arguments_with_a_default_keep_it_unless_a_field_has_their_name():
    u, given = torch.rand(2, 8, 8), torch.rand(2, 8, 8)

    def scaled(u, v=2.0, *, calculus=None, shift=1.0):
        assert calculus is BOX
        return (u * v + shift).numpy()

    close(apply_physics("own", scaled, {"u": u}, BOX), 2 * u + 1)
    close(apply_physics("own", scaled, {"u": u, "v": given}, BOX), u * given + 1)
    with pytest.raises(ValueError, match=r"'own' does not follow from the fields \['u'\]: it takes 's'"):
        apply_physics("own", lambda u, s: u, {"u": u}, BOX)


def test_fields_on_several_grids_are_refused():
    fields = {"u": torch.rand(2, 8, 8), "v": torch.rand(2, 16, 16)}
    with pytest.raises(
        ValueError, match=r"'kinetic_energy' is made of fields on several grids, \{'u': \(8, 8\), 'v': \(16, 16\)\}"
    ):
        compute_physics("kinetic_energy", fields, BOX)
    with pytest.raises(ValueError, match="'vorticity' is made of fields on several grids"):
        compute_physics("vorticity", fields, BOX)


def test_what_does_not_follow_is_said():
    with pytest.raises(ValueError, match=r"'vorticity' does not follow from the fields \['u'\]: it takes 'v'"):
        compute_physics("vorticity", {"u": torch.zeros(1, 8, 8)}, BOX)
    with pytest.raises(ValueError, match="'okubo_weiss' does not follow from the fields .*it takes 'u'"):
        compute_physics("okubo_weiss", {"scalar": torch.zeros(1, 8, 8)}, BOX)
    with pytest.raises(ValueError, match="'helicity' is neither"):
        compute_physics("helicity", {}, BOX)
    with pytest.raises(ValueError, match="has walls"):
        compute_physics("darcy_speed", {"coefficient": torch.ones(1, 8, 8), "solution": torch.ones(1, 8, 8)}, BOX)
    with pytest.raises(ValueError, match="2 dimensions"):
        compute_physics("vorticity", {"u": torch.ones(1, 8), "v": torch.ones(1, 8)}, PeriodicBox([1.0]))
