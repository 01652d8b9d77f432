import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.evaluate import ConceptUse


def make_sae(**kwargs):
    torch.manual_seed(0)
    settings = {"concept_rule": ns.TopK(4), "domain_rule": ns.Rectify(), **kwargs}
    sae = ns.SAEFNO(3, 10, (5, 5), **settings)
    sae.fit_normalization(torch.randn(3), 1.5)
    return sae


def test_metrics_against_dense_codes():
    sae = make_sae().train()
    x = torch.randn(7, 3, 8, 10)
    metrics = ns.evaluate(sae, x, batch_size=3)
    assert sae.training
    sae.eval()
    with torch.no_grad():
        out = sae(x)
    dense = out.codes.to_dense()
    on = dense.flatten(2).any(2)
    assert metrics["l0"] == pytest.approx(float(on.double().sum(1).mean()))
    assert metrics["l0_local"] == pytest.approx(float((dense != 0).double().sum(1).mean()), rel=1e-6)
    squares = dense.double().square()[on]
    even = squares.mean((1, 2)).square() / squares.square().mean((1, 2))
    assert metrics["participation"] == pytest.approx(float(even.mean()), rel=1e-5)
    assert metrics["area_fraction"] == pytest.approx(float((squares > 0).double().mean((1, 2)).mean()), rel=1e-6)
    assert metrics["dead_fraction"] == pytest.approx(float((~on.any(0)).double().mean()))
    error = (x - out.reconstruction).double().square().sum()
    variance = (x - x.mean((0, 2, 3), keepdim=True)).double().square().sum()
    assert metrics["fve"] == pytest.approx(float(1 - error / variance), rel=1e-6)
    assert metrics["n_concepts"] == 10
    assert metrics["n_samples"] == 7


def test_a_prefix_is_evaluated_on_its_own_codes():
    sae, x = make_sae().eval(), torch.randn(5, 3, 8, 10)
    found = ns.evaluate(sae, x, prefixes=(2, 6), batch_size=2)
    codes = sae.encode(x)
    for n in (2, 6):
        error = (x - sae.decode(codes.keep(codes.concept < n))).detach().double().square().sum()
        variance = (x - x.mean((0, 2, 3), keepdim=True)).double().square().sum()
        assert found[f"fve_first_{n}"] == pytest.approx(float(1 - error / variance), abs=1e-6)
    assert found["fve"] == pytest.approx(ns.evaluate(sae, x)["fve"], abs=1e-6)


def test_metrics_do_not_depend_on_the_batch():
    sae = make_sae(concept_rule=ns.BatchTopK(4))
    x = torch.randn(8, 3, 8, 8)
    sae.train()(x)
    whole, parts = ns.evaluate(sae, x, batch_size=8), ns.evaluate(sae, x, batch_size=3)
    assert whole == pytest.approx(parts, rel=1e-5)


def test_energy_of_use():
    sae = make_sae(concept_rule=ns.TopK(10)).eval()
    x = torch.randn(4, 3, 8, 8)
    use = ConceptUse(sae)
    codes = sae.encode(x).detach()
    use.update(codes)
    expected = codes.to_dense().square().mean((2, 3)).sum(0) * sae.kernel_norms().square()
    torch.testing.assert_close(use.energy.float(), expected)


def band_limited(shape, n=4):
    basis = ns.FourierBasis((5, 5))
    spectrum = torch.randn(n, 3, *basis.mode_shape, dtype=torch.cdouble, generator=torch.Generator().manual_seed(0))
    return basis.synthesis(spectrum, shape)


@pytest.mark.parametrize("domain_rule", [ns.Rectify(), ns.LocalTopK(2), ns.SoftLocalTopK(2)])
def test_codes_of_band_limited_fields_agree_on_nested_grids(domain_rule):
    sae = make_sae(domain_rule=domain_rule, concept_rule=ns.TopK(10)).double()
    result = ns.code_consistency(sae, band_limited((12, 12)), band_limited((24, 36)))
    assert result["code_consistency"] == pytest.approx(1.0, abs=1e-12)
    assert result["code_relative_l2"] < 1e-6
    assert result["code_support_iou"] > 0.999


def test_code_consistency_is_the_plain_correlation():
    sae = make_sae(concept_rule=ns.TopK(10))
    coarse, fine = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 16, 16)
    result = ns.code_consistency(sae, coarse, fine, batch_size=3)
    a = sae.eval().encode(coarse).detach().to_dense().flatten().double()
    b = sae.encode(fine).detach().to_dense()[..., ::2, ::2].flatten().double()
    assert result["code_consistency"] == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), rel=1e-6)
    assert result["code_relative_l2"] == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-6)
    with pytest.raises(ValueError, match="same samples"):
        ns.code_consistency(sae, coarse, fine[:2])


@pytest.mark.parametrize("seed", range(6))
def test_constant_codes_have_no_correlation(seed):
    torch.manual_seed(seed)
    sae = ns.SAEFNO(2, 1, (5, 5), domain_rule=ns.Identity()).eval()
    coarse, fine = torch.full((3, 2, 12, 12), 0.1), torch.full((3, 2, 24, 24), 0.3)
    assert np.isnan(ns.code_consistency(sae, coarse, fine)["code_consistency"])


def test_code_consistency_on_the_sphere_weighs_points_by_area():
    torch.manual_seed(0)
    sae = ns.SAESFNO(3, 6, (4, 8), concept_rule=ns.TopK(6), domain_rule=ns.Rectify()).eval()
    coarse, fine = torch.randn(2, 3, 9, 16), torch.randn(2, 3, 17, 32)
    result = ns.code_consistency(sae, coarse, fine)
    a = sae.encode(coarse).detach().to_dense().double()
    b = sae.encode(fine).detach().to_dense()[..., ::2, ::2].double()
    area = sae.basis.quadrature((9, 16), like=a).expand_as(a)
    expected = np.cov(a.flatten(), b.flatten(), aweights=area.flatten())
    assert result["code_consistency"] == pytest.approx(expected[0, 1] / (expected[0, 0] * expected[1, 1]) ** 0.5, rel=1e-6)
    difference, size = (area * (a - b).square()).sum(), (area * a.square()).sum()
    assert result["code_relative_l2"] == pytest.approx(float((difference / size) ** 0.5), rel=1e-6)
    both, either = (area * ((a != 0) & (b != 0))).sum(), (area * ((a != 0) | (b != 0))).sum()
    assert result["code_support_iou"] == pytest.approx(float(both / either), rel=1e-6)
