import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.testing import check_model


def areas(nlat, nlon):
    """Shares of the sphere's area on an equiangular grid, ``(nlat, nlon)``: the weights by which a sum over the latitudes
    integrates every polynomial that they tell apart, from a linear system."""
    values = np.polynomial.legendre.legvander(np.cos(np.linspace(0, np.pi, nlat)), nlat - 1).T
    weights = np.linalg.solve(values, np.eye(nlat)[0])  # only P_0 has a mean
    return torch.as_tensor(weights)[:, None].expand(-1, nlon) / nlon


def rotating_field(nlat, nlon):
    """Four channels of low degree on an equiangular grid, five samples, ``(5, 4, nlat, nlon)``."""
    colatitude = torch.linspace(0, torch.pi, nlat, dtype=torch.float64)[:, None]
    longitude = torch.arange(nlon, dtype=torch.float64) * 2 * torch.pi / nlon
    x, y = colatitude.sin() * longitude.cos(), colatitude.sin() * longitude.sin()
    z = colatitude.cos().expand_as(x)
    mixing = torch.randn(5, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.einsum("bif,f...->bi...", mixing, torch.stack([x, y, z, x * y, z**2]))


@pytest.mark.parametrize(("grid", "n_dim"), [((9,), 1), ((6, 7), 2), ((4, 5, 6), 3)])
def test_pointwise_sae_is_top_k_of_every_point(grid, n_dim):
    torch.manual_seed(0)
    sae = ns.SAEPointwise(5, 11, k=3, n_dim=n_dim).double().eval()
    with torch.no_grad():
        sae.encoder_bias.normal_(0, 0.1)
        sae.decoder_bias.normal_(0, 0.1)
        sae.fit_normalization(torch.randn(5), 2.0)
    x = torch.randn(2, 5, *grid).double()
    out = sae(x)
    points = ((x - sae.mean.view(-1, *(1,) * n_dim)) / 2.0).flatten(2).transpose(1, 2).reshape(-1, 5)
    expected = []
    for point in points:
        code = torch.relu((point - sae.decoder_bias) @ sae.encoder_weight.T + sae.encoder_bias)
        code[code.argsort(descending=True)[3:]] = 0
        expected.append((code @ sae.decoder_weight + sae.decoder_bias) * 2.0 + sae.mean)
    expected = torch.stack(expected).reshape(2, -1, 5).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(out.reconstruction, expected)
    torch.testing.assert_close(sae.decode(sae.encode(x)), expected)
    assert float(out.codes.l0_local()) <= 3


def test_pointwise_sae_saves_and_is_registered(tmp_path):
    from neuralop.models.base_model import BaseModel

    assert BaseModel._models["saepointwise"] is ns.SAEPointwise
    sae = ns.SAEPointwise(5, 11, k=3).eval()
    x = torch.randn(2, 5, 6, 6)
    sae.save_pretrained(tmp_path)
    torch.testing.assert_close(ns.load(tmp_path)(x).reconstruction, sae(x).reconstruction, rtol=0, atol=0)
    with pytest.raises(ValueError, match="n_concepts=11"):
        ns.SAEPointwise(5, 11, k=12)


def test_pointwise_atom_has_the_kernels_norm():
    sae = ns.SAEPointwise(5, 11, k=3)
    atoms = sae.atoms([2, 7], (8, 6))
    torch.testing.assert_close(atoms.square().mean((2, 3)).sum(1).sqrt(), sae.kernel_norms()[[2, 7]])
    with pytest.raises(ValueError, match="0 to 10"):
        sae.atoms([11], (8, 6))


def test_pointwise_dead_concepts_write_and_learn():
    sae = ns.SAEPointwise(5, 11, k=3)
    dead = torch.zeros(11, dtype=torch.bool)
    x = torch.randn(2, 5, 6, 6)
    assert sae(x).dead_reconstruction is None
    dead[[1, 4]] = True
    sae(x, dead=dead, dead_k=4).dead_reconstruction.square().sum().backward()
    assert (sae.encoder_weight.grad.abs().sum(1) > 0).nonzero()[:, 0].tolist() == [1, 4]


def spherical_sae(**arguments):
    torch.manual_seed(0)
    sae = ns.SAEPointwise(4, 12, k=2, grid="equiangular", **arguments).double().eval()
    with torch.no_grad():
        sae.encoder_bias.normal_(-0.8, 0.3)
    return sae


def test_metrics_on_the_sphere_weigh_points_by_their_area():
    sae, x = spherical_sae(), rotating_field(9, 16)
    area = areas(9, 16)
    with torch.no_grad():
        out = sae(x)
    codes, written = out.codes.to_dense(), out.reconstruction
    error = ((x - written).square() * area).sum()
    mean = (x * area).sum((0, 2, 3)) / 5
    square = (x.square() * area).sum()
    energy = (codes.square() * area).sum((0, 2, 3)) * sae.decoder_weight.detach().square().sum(1)
    shares = (energy.sort(descending=True).values.cumsum(0) / energy.sum()).tolist()
    metrics = ns.evaluate(sae, x, batch_size=2)
    assert metrics["fve"] == pytest.approx(float(1 - error / (square - 5 * mean.square().sum())), rel=1e-9)
    assert metrics["relative_l2"] == pytest.approx(float((error / square).sqrt()), rel=1e-9)
    assert metrics["shrinkage"] == pytest.approx(float(((written.square() * area).sum() / square).sqrt()), rel=1e-9)
    assert metrics["l0_local"] == pytest.approx(float(((codes != 0) * area).sum() / 5), rel=1e-9)
    assert metrics["c90"] == next(i + 1 for i, share in enumerate(shares) if share >= 0.9)
    torch.testing.assert_close(out.scores, (codes.square() * area).sum((2, 3)).sqrt() * sae.decoder_weight.norm(dim=1))
    boxed = ns.SAEPointwise(4, 12, k=2).double().eval()
    boxed.load_state_dict(sae.state_dict())
    counted = ns.evaluate(boxed, x)
    assert all(abs(counted[name] / metrics[name] - 1) > 1e-3 for name in ("fve", "relative_l2", "shrinkage", "l0_local"))


@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss", "lobatto"])
def test_pointwise_sae_on_the_sphere_is_a_model_like_others(grid, tmp_path):
    torch.manual_seed(0)
    sae = ns.SAEPointwise(5, 11, k=3, grid=grid)
    check_model(sae, torch.randn(3, 5, 9, 16))
    sae.save_pretrained(tmp_path)
    assert ns.load(tmp_path).basis.grid == grid
    area = sae.basis.quadrature((9, 16), like=torch.ones(()))
    atoms = sae.atoms([2, 7], (9, 16))
    torch.testing.assert_close((atoms.square() * area).sum((2, 3)).sum(1).sqrt(), sae.kernel_norms()[[2, 7]])


def test_codes_on_nested_grids_of_the_sphere_are_the_same():
    sae = spherical_sae()
    coarse, fine = rotating_field(9, 16), rotating_field(17, 32)
    consistency = ns.code_consistency(sae, coarse, fine)
    assert consistency["code_consistency"] == pytest.approx(1, abs=1e-12)
    assert consistency["code_support_iou"] == 1
    assert consistency["code_relative_l2"] < 1e-6
    boxed = ns.SAEPointwise(4, 12, k=2).double().eval()
    boxed.load_state_dict(sae.state_dict())
    assert ns.code_consistency(boxed, coarse, fine)["code_consistency"] < 0.99
    low, high = ns.evaluate(sae, coarse), ns.evaluate(sae, fine)
    assert low["fve"] == pytest.approx(high["fve"], abs=0.01)


def test_training_on_the_sphere_centres_and_scales_by_area():
    x = rotating_field(9, 16).float() + torch.arange(4.0).view(4, 1, 1)
    area = areas(9, 16).float()
    sae = ns.SAEPointwise(4, 12, k=2, grid="equiangular")
    ns.train(sae, x, ns.TrainingConfig(n_epochs=1, batch_size=5), progress=False)
    mean = (x * area).sum((0, 2, 3)) / 5
    torch.testing.assert_close(sae.mean, mean)
    centred = x - mean.view(4, 1, 1)
    torch.testing.assert_close(sae.scale, ((centred.square() * area).sum((2, 3)).mean()).sqrt())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": "equal-area"}, "unknown grid 'equal-area'; known: equiangular, legendre-gauss, lobatto"),
        ({"grid": "lobatto", "n_dim": 3}, "grid='lobatto' is on the sphere, which has n_dim=2, got 3"),
    ],
)
def test_other_spheres_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ns.SAEPointwise(5, 11, **arguments)
