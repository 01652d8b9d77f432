import pytest
import torch

from neuralop_sae.layers.taps import adjoint, convolve, on_grid


@pytest.mark.parametrize(("grid", "taps"), [((7,), (4,)), ((5, 6), (3, 2)), ((4, 3, 5), (2, 3, 5))])
def test_adjoint(grid, taps):
    kernels, centre = torch.randn(4, 3, *taps).double(), [size // 2 for size in taps]
    x, y = torch.randn(2, 3, *grid).double(), torch.randn(2, 4, *grid).double()
    forward = (convolve(x, kernels, centre) * y).sum()
    torch.testing.assert_close((x * convolve(y, *adjoint(kernels, centre))).sum(), forward)


@pytest.mark.parametrize("points", [8, 12, 16, 32, 64, 96])
def test_the_integral_is_kept(points):
    kernels = torch.randn(2, 5).double()
    found, _ = on_grid(kernels, (points,), (32,))
    torch.testing.assert_close(found.sum(1), kernels.sum(1), rtol=1e-12, atol=1e-12)


def test_a_finer_grid_samples_the_piecewise_linear_kernel():
    kernels = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).double()  # at -2, -1, 0, 1 steps
    found, centre = on_grid(kernels, (16,), (8,))
    expected = torch.tensor([[0.5, 1.0, 2.5, 4.0, 3.0, 2.0, 2.5, 3.0, 1.5]]).double() / 2
    torch.testing.assert_close(found, expected)
    assert centre == [5]


def test_a_smooth_kernel_acts_alike_on_every_grid():
    """On a fine grid and a coarse one the response to a smooth field tends to the integral, at second order in the step."""
    offsets = torch.arange(-8, 9).double() / 64
    kernels = (torch.exp(-((offsets / 0.05) ** 2)) / 64)[None, None]
    errors = []
    for points in (16, 32, 64, 128, 256):
        s = torch.arange(points).double() / points
        response = convolve(torch.cos(2 * torch.pi * 2 * s)[None, None], *on_grid(kernels, (points,), (64,)))
        exact = 0.05 * torch.pi**0.5 * torch.exp(torch.tensor(-((torch.pi * 2 * 0.05) ** 2))) * torch.cos(2 * torch.pi * 2 * s)
        errors.append(float((response[0, 0] - exact).norm() / exact.norm()))
    assert errors[2] < 1e-3
    assert max(errors[1], errors[3], errors[4]) < 0.03
    assert errors[0] < 0.1


def test_kernels_wider_than_the_grid_wrap_around():
    kernels = torch.arange(1.0, 8.0).double()[None]  # offsets -3 to 3 on five points: -3 is 2, 3 is -2
    found, centre = on_grid(kernels, (5,), None)
    by_offset = {offset: float(found[0, (offset + centre[0]) % 5]) for offset in range(-2, 3)}
    assert by_offset == {-2: 2 + 7, -1: 3, 0: 4, 1: 5, 2: 6 + 1}
