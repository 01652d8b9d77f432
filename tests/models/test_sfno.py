"""SAESFNO: the whole contract on the sphere, and rotations."""

import math
from typing import Any

import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.layers import ConceptDecoder, ConceptEncoder, spherical_convolution
from neuralop_sae.layers.spherical_convolution import SHT
from neuralop_sae.models.starts import random_points
from neuralop_sae.testing import assert_equal, check_concept_layer, check_model

KINDS: dict[str, dict[str, Any]] = {"zonal": {}, "isotropic": {"isotropic": True}, "positional": {"kernel": "positional"}}
FORMS = [None, "tucker", "cp", "tt"]
SHAPES = {"equiangular": (9, 10), "legendre-gauss": (6, 11), "lobatto": (7, 12)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_concept_layers(kind: str, form: str | None) -> None:
    """Sparse path against neuralop's own SphericalConv."""
    torch.manual_seed(0)
    arguments = {"conv_module": "SphericalConv", "conv_options": KINDS[kind], "factorization": form, "rank": 0.5}
    check_concept_layer(
        ConceptEncoder(3, 8, (5, 10), **arguments), ConceptDecoder(3, 8, (5, 10), **arguments), [(9, 10), (11, 13)]
    )


@pytest.mark.parametrize("grid", SHAPES)
@pytest.mark.parametrize("form", [None, "tucker"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str, form: str | None, grid: str) -> None:
    torch.manual_seed(0)
    sae = ns.SAESFNO(3, 8, (5, 10), grid=grid, concept_rule=ns.TopK(3), factorization=form, rank=0.5, **KINDS[kind])
    check_model(sae, torch.randn(3, 3, *SHAPES[grid]))


def test_contract_with_operators_before_and_after() -> None:
    torch.manual_seed(0)
    sae = ns.SAESFNO(3, 8, (4, 8), grid="lobatto", concept_rule="JumpReLU", encoder="fno_block", decoder="fno_block")
    check_model(sae, torch.randn(2, 3, 6, 9))


def rotate_about_x(basis: ns.SphericalBasis, field: torch.Tensor, degrees: int) -> torch.Tensor:
    """The band-limited field turned by a right angle about the x axis, ``(..., nlat, nlon)``: f(R^-1 s), with the harmonics
    evaluated at the turned points one by one (scipy), not by the transform under test."""
    from scipy.special import sph_harm_y

    nlat, nlon = field.shape[-2:]
    theta, phi = basis.colatitudes(nlat)[:, None], basis.longitudes(nlon)[None]
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos() * torch.ones(1, nlon, dtype=torch.float64)
    y, z = z, -y
    at, round_ = z.clamp(-1, 1).acos(), torch.atan2(y, x)
    coefficients = basis.analysis(field)
    turned = torch.zeros_like(field)
    for degree in range(degrees):
        for order in range(degree + 1):
            harmonic = torch.as_tensor(sph_harm_y(degree, order, at.numpy(), round_.numpy())) * math.sqrt(4 * math.pi)
            weight = 1 if order == 0 else 2
            turned += weight * (coefficients[..., degree, order, None, None] * harmonic).real
    return turned


@pytest.mark.parametrize(("isotropic", "commutes"), [(True, True), (False, False)])
def test_isotropic_concepts_commute_with_rotations(isotropic: bool, commutes: bool) -> None:
    torch.manual_seed(0)
    grid = (17, 32)
    sae = ns.SAESFNO(3, 8, (5, 10), isotropic=isotropic).double()
    basis = sae.basis
    assert isinstance(basis, ns.SphericalBasis)
    c = torch.view_as_complex(torch.randn(2, 3, 5, 5, 2, dtype=torch.float64)).tril()
    c[..., 0] = c[..., 0].real.to(c.dtype)
    field = basis.synthesis(c, grid)
    turned = rotate_about_x(basis, field, 5)
    assert_equal("norms", basis.mean_square(turned), basis.mean_square(field))
    layer = sae.concept_encoder.dense_forward
    out, out_turned = layer(field).detach(), layer(turned).detach()
    error = (out_turned - rotate_about_x(basis, out, 5)).abs().max() / out.abs().max()
    assert (float(error) < 1e-10) is commutes


def test_l0_local_counts_area_not_points() -> None:
    """Codes on the half of the points next to the poles cover less than half of the sphere."""
    sae = ns.SAESFNO(2, 4, (4, 8))
    codes = sae.encode(torch.randn(1, 2, 17, 16))
    values = torch.zeros(1, 17, 16)
    values[:, :4], values[:, -4:] = 1.0, 1.0
    caps = type(codes)(torch.tensor([0]), torch.tensor([0]), values, 1, 4, codes.basis)
    expected = 1 - math.cos(4 * math.pi / 16 - math.pi / 32)  # two caps up to the middle between the circles, about
    assert abs(float(caps.l0_local()) - expected) < 0.02


def test_saved_and_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sae = ns.SAESFNO(3, 8, (5, 10), grid="lobatto", isotropic=True).eval()
    sae.save_pretrained(tmp_path / "sae")
    again, x = ns.load(tmp_path / "sae"), torch.randn(2, 3, 7, 12)
    assert again.config() == sae.config()
    assert torch.equal(again(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_modes": (8, 8)}, r"use n_modes=\(8, 16\)"),
        ({"kernel": "radial"}, "unknown kernel 'radial'; known: zonal, positional"),
        ({"kernel": "positional", "isotropic": True}, "use kernel='zonal'"),
        ({"grid": "equiangular-trapezoidal"}, "quadrature is not exact"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ns.SAESFNO(3, 8, **{"n_modes": (4, 8), **arguments})
    with pytest.raises(TypeError, match="takes no conv_module"):
        ns.SAESFNO(3, 8, (4, 8), conv_module="SpectralConv")


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 4 degrees, n_modes has 8: use n_modes=\(4, 8\), or at least 15 x 15"):
        ns.SAESFNO(3, 8, (8, 16))(torch.randn(2, 3, 8, 16))


def test_training_after_inference_mode() -> None:
    sae, x = ns.SAESFNO(3, 8, (4, 8), encoder="fno_block"), torch.randn(4, 3, 9, 16)
    with torch.inference_mode():
        sae(x)
        sae.dense_forward(x)
    sae.dense_forward(x).reconstruction.square().sum().backward()
    ns.train(sae, x, ns.TrainingConfig(n_epochs=1, batch_size=2), progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_on_the_sphere_can_be_compressed(kind: str) -> None:
    """At full rank nothing is lost, at a third something."""
    torch.manual_seed(0)
    sae, x = ns.SAESFNO(3, 8, (5, 10), concept_rule=ns.TopK(3), **KINDS[kind]), torch.randn(4, 3, 9, 12)
    whole = (3, 8, *sae.concept_encoder.convolution.kernel_shape)
    same = ns.compress(sae, "tucker", whole)
    assert max(same.encoder_error, same.decoder_error) < 1e-4
    assert_equal("forward", same.sae(x).reconstruction, sae(x).reconstruction, factor=10)
    assert 1e-3 < ns.compress(sae, "tucker", 0.3).decoder_error < 1


def test_a_warm_up_in_inference_mode_does_not_break_attachment() -> None:
    from neuralop.models import SFNO

    model, x = SFNO(n_modes=(4, 8), in_channels=1, out_channels=1, hidden_channels=6, n_layers=2), torch.randn(2, 1, 9, 16)
    with torch.inference_mode():
        model(x)
    sae = ns.SAESFNO(6, 8, (4, 8)).eval()
    with ns.splice(model, "fno_blocks.0", sae):
        model(x).square().sum().backward()
    assert sae.concept_decoder.conv.bias.grad is not None


def test_dictionaries_start_from_points_drawn_by_area() -> None:
    """A field that says how far north it is: a third of the points of this grid lie beyond 60 degrees, and 13% of the area."""
    grid = (33, 64)
    basis = ns.SphericalBasis((4, 8))
    cosine = basis.colatitudes(grid[0]).cos().float()
    field = cosine[:, None].expand(grid).expand(2, 1, *grid)
    drawn = random_points(field, torch.Generator().manual_seed(0), basis.quadrature(grid, like=field))
    polar = float((drawn.abs() > math.cos(math.radians(30))).float().mean())
    assert abs(polar - (1 - math.cos(math.radians(30)))) < 0.02
    assert abs(float(drawn.square().mean()) - 1 / 3) < 0.01


@pytest.mark.parametrize("arguments", [{"isotropic": True}, {"kernel": "zonal"}, {"kernel": "positional"}])
def test_kernels_start_from_fields_around_points(arguments: dict[str, Any]) -> None:
    """Alike in all directions, whatever the kernels may learn: atoms in the middle of the map are even to both sides."""
    sae: Any = ns.SAESFNO(2, 5, (5, 10), skip=None, code_grid=(17, 32), **arguments).double().eval()
    x = torch.randn(3, 2, 7, 12, dtype=torch.float64)  # too coarse for these modes, but the grid of the codes is not
    sae.initialize_from(x, torch.Generator().manual_seed(0))
    norms = sae.kernel_norms()
    assert_equal("norms", norms, norms.mean().expand(5), factor=10)
    atoms = sae.atoms(range(5), (17, 32))
    assert_equal("north and south", atoms.flip(-2), atoms, factor=10)
    assert_equal("east and west", atoms.flip(-1).roll(1, -1), atoms, factor=10)
    assert_equal("along the equator and the meridian", atoms[..., 8, 16:25:2], atoms[..., 8:17:1, 16][..., ::2], factor=10)


def test_a_transform_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(spherical_convolution, "SHT", lambda dtype: made.append(dtype) or SHT(dtype))
    sae = ns.SAESFNO(3, 8, (4, 8))
    for _ in range(3):
        sae.dense_forward(torch.randn(2, 3, 9, 16))
    assert made == [torch.float32] * 2  # of the encoder and of the decoder
