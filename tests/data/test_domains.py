import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralop_sae.data.domains import Box, Domain, Sphere

DOMAINS = [
    (Box(1, 1.0), (40,)),
    (Box(1, 2.5), (64,)),
    (Box(2, 2.0), (20, 24)),
    (Sphere(), (33, 64)),
    (Sphere("lobatto"), (33, 64)),
]


@pytest.mark.parametrize("length", [0.7, 1.0, 3.0])
def test_wave_packets_are_sums_over_all_images(length: float) -> None:
    position, width, wavenumber = (
        torch.tensor([[0.1, 0.6], [0.65, 0.0]]),
        torch.tensor([0.3, 0.05]),
        torch.tensor([[1.5, -3], [0, 9]]),
    )
    position, width, wavenumber = position.double(), width.double(), wavenumber.double()
    found = Box(2, length).waves(position, (6, 5), width, wavenumber)
    images = length * torch.cartesian_prod(*[torch.arange(-12, 13).double()] * 2)
    points = length * torch.cartesian_prod(torch.arange(6).double() / 6, torch.arange(5).double() / 5)
    r = points[:, None] + images - position[:, None, None]  # (packet, point, image, axis)
    heights = (-r.square().sum(-1) / (2 * width[:, None, None].square())).exp()
    turns = torch.einsum("npia,na->npi", r, wavenumber)
    expected = torch.polar(heights, 2 * torch.pi * turns).sum(-1).reshape(2, 6, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("domain", "shape"), DOMAINS)
def test_bumps_have_unit_integral_wherever_they_are(domain: Domain, shape: tuple[int, ...]) -> None:
    position = torch.rand(7, domain.n_dim, dtype=torch.float64) * torch.tensor([2.0, 3.0])[: domain.n_dim]
    bumps = domain.bump(position, shape, 0.25)
    if isinstance(domain, Box):
        integral = bumps.flatten(1).mean(1) * domain.length**domain.n_dim
    else:
        integral = (bumps * domain.basis(10).quadrature(shape, like=bumps)).flatten(1).sum(1)
    torch.testing.assert_close(integral, torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-9)


def test_distances_on_a_box_take_the_shortest_way_round() -> None:
    box = Box(2, 4.0)
    a = torch.tensor([[0.5, 0.5], [0.5, 0.5], [3.5, 1.0]])
    b = torch.tensor([[3.5, 0.5], [2.5, 2.5], [0.5, 3.9]])
    torch.testing.assert_close(box.distance(a, b), torch.tensor([1.0, 8**0.5, (1 + 1.1**2) ** 0.5]))


def test_distances_on_the_sphere_are_angles() -> None:
    a = torch.tensor([[0.3, 0.1], [0.2, 0.0], [1.0, 5.0], [torch.pi / 2, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.3 + 1e-9, 0.1], [0.2, torch.pi], [torch.pi - 1.0, 5.0 - torch.pi], [0.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([1e-9, 0.4, torch.pi, torch.pi / 2], dtype=torch.float64)
    torch.testing.assert_close(Sphere().distance(a, b), expected, rtol=1e-6, atol=1e-15)


@given(st.lists(st.floats(0, 0.999), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_distances_are_a_metric(numbers: list[float]) -> None:
    uniform = torch.tensor(numbers, dtype=torch.float64).reshape(3, 2)
    for domain in (Box(2, 1.0), Sphere()):
        a, b, c = domain.place((0, 0), uniform)
        assert float(domain.distance(a, a)) == 0
        assert float(domain.distance(a, b)) == pytest.approx(float(domain.distance(b, a)))
        assert float(domain.distance(a, c)) <= float(domain.distance(a, b) + domain.distance(b, c)) + 1e-12


def test_cells_of_a_box_fill_it_and_those_of_a_longer_box_hold_them() -> None:
    assert Box(2, 1.0).cells == [(0, 0)]
    assert set(Box(2, 2.0).cells) < set(Box(2, 2.5).cells)
    assert len(Box(2, 2.5).cells) == 9
    placed = Box(2, 2.5).place((2, 0), torch.tensor([[0.25, 0.5], [0.75, 0.5]]))
    assert placed.tolist() == [[2.25, 0.5], [2.75, 0.5]]
    assert Box(2, 2.5).inside(placed).tolist() == [True, False]


def test_places_on_the_sphere_are_uniform_by_area() -> None:
    n = 100
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    vectors = torch.cartesian_prod(middle, middle)
    colatitude, longitude = Sphere().place((0, 0), vectors).T
    z, x = colatitude.cos(), colatitude.sin() * longitude.cos()
    for moment in (z.square(), x.square()):  # a third each, with uniform directions
        assert float(moment.mean()) == pytest.approx(1 / 3, abs=1e-4)
    assert Sphere().inside(vectors).all()


@pytest.mark.parametrize(("domain", "shape"), DOMAINS)
def test_the_middle_is_nearest_to_the_middle_point(domain: Domain, shape: tuple[int, ...]) -> None:
    points = domain.points(shape)
    assert points.shape == (*shape, domain.n_dim)
    central = points[tuple(size // 2 for size in shape)]
    assert float(domain.distance(domain.middle(shape), central)) < 1e-12


def test_a_coarse_grid_sees_the_values_at_its_points() -> None:
    box = Box(2, 1.0)
    basis = box.basis(7)
    coefficients = torch.randn(3, *basis.mode_shape, dtype=torch.complex128)
    fine = box.synthesis(basis, coefficients, (40, 24))
    torch.testing.assert_close(box.synthesis(basis, coefficients, (10, 8)), fine[:, ::4, ::3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Box(0),
        lambda: Box(1, 0.0),
        lambda: Box(1, math.inf),
        lambda: Sphere("healpix"),
        lambda: Box(1).bump(torch.zeros(1, 1), (4,), 0.0),
    ],
)
def test_bad_arguments_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown grid"):
        make()


def test_a_grid_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="2 positive sizes"):
        Sphere().points((8,))
    with pytest.raises(ValueError, match="1 positive sizes"):
        Box(1).axes((8, 8))
