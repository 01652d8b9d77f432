import pytest
import torch
from configmypy import Bunch
from neuralop.models import get_model

import neuralop_sae as ns
from neuralop_sae.testing import check_model


def random_sae(grid, **arguments):
    sae = ns.SAEMLP(3, 11, grid, k=4, **arguments).double().eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        sae.fit_normalization(torch.randn(3), 2.0)
    return sae


@pytest.mark.parametrize("grid", [(9,), (6, 7), (3, 4, 5)])
def test_sae_mlp_is_top_k_of_the_flattened_field(grid):
    sae = random_sae(grid)
    x = torch.randn(2, 3, *grid).double()
    flat = ((x - sae.mean.view(-1, *(1,) * len(grid))) / 2.0 - sae.decoder_bias).flatten(1)
    n_points = torch.Size(grid).numel()
    pre_codes = flat @ sae.encoder_weight.flatten(1).T / n_points + sae.encoder_bias
    codes = torch.relu(pre_codes)
    scores = codes * sae.decoder_weight.flatten(1).norm(dim=1) / n_points**0.5
    on = torch.zeros_like(codes).scatter(1, scores.topk(4, dim=1).indices, 1.0)
    written = ((codes * on) @ sae.decoder_weight.flatten(1)).reshape(x.shape) + sae.decoder_bias
    expected = written * 2.0 + sae.mean.view(-1, *(1,) * len(grid))
    out = sae(x)
    torch.testing.assert_close(out.reconstruction, expected)
    torch.testing.assert_close(out.scores, scores)
    dense = out.codes.to_dense()
    torch.testing.assert_close(dense, (codes * on).view(2, 11, *(1,) * len(grid)).expand_as(dense))
    torch.testing.assert_close(sae.decode(out.codes), expected)


def test_codes_are_on_everywhere_or_nowhere():
    sae = random_sae((6, 7))
    metrics = ns.evaluate(sae, torch.randn(5, 3, 6, 7))
    assert metrics["l0"] == pytest.approx(metrics["l0_local"])
    assert 0 < metrics["l0"] <= 4


def test_sae_mlp_is_a_model_like_others(tmp_path):
    check_model(ns.SAEMLP(3, 11, (6, 7), k=4), torch.randn(3, 3, 6, 7))
    check_model(ns.SAEMLP(3, 11, 8, k=4), torch.randn(3, 3, 8))
    model = {"model_arch": "saemlp", "data_channels": 3, "n_concepts": 11, "grid": [6, 7], "k": 4}
    sae = get_model(Bunch({"model": model, "patching": {"levels": 0}}))
    sae.save_pretrained(tmp_path)
    assert ns.load(tmp_path).grid == (6, 7)


def test_another_grid_is_refused_before_training():
    sae = ns.SAEMLP(3, 11, (6, 7), k=4)
    for call in (sae, sae.encode, sae.normalize, lambda x: ns.train(sae, x, progress=False)):
        with pytest.raises(ValueError, match=r"its own grid \(6, 7\) and takes no other, got \(12, 14\); resample"):
            call(torch.randn(2, 3, 12, 14))
    codes = sae.encode(torch.randn(2, 3, 6, 7))
    with pytest.raises(ValueError, match="writes no other"):
        sae.decode(codes, (12, 14))
    with pytest.raises(ValueError, match="has atoms on no other"):
        sae.atoms([0], (12, 14))


def test_an_edit_in_a_part_of_the_domain_acts_by_its_mean():
    sae = random_sae((6, 7))
    codes = sae.encode(torch.randn(2, 3, 6, 7))
    half = codes.values.clone()
    half[:, :3] = 0
    edited = ns.ConceptCodes(codes.sample, codes.concept, half, 2, 11, codes.basis)
    halved = ns.ConceptCodes(codes.sample, codes.concept, codes.values / 2, 2, 11, codes.basis)
    torch.testing.assert_close(sae.decode(edited), sae.decode(halved))


def test_on_the_sphere_points_count_by_area():
    sae = random_sae((9, 16), sht_grid="equiangular")
    check_model(sae.float(), torch.randn(3, 3, 9, 16))
    sae.double()
    area = sae.basis.quadrature((9, 16), like=sae.mean).expand(9, 16)
    x = torch.randn(2, 3, 9, 16).double()
    centred = (x - sae.mean.view(3, 1, 1)) / 2.0 - sae.decoder_bias
    expected = torch.einsum("bihw,cihw,hw->bc", centred, sae.encoder_weight, area) + sae.encoder_bias
    codes = sae.encode(x)
    torch.testing.assert_close(codes.values[:, 0, 0], expected[codes.sample, codes.concept])
    norms = (sae.decoder_weight.square() * area).sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(sae.kernel_norms(), norms)


def test_on_sparse_mixtures_it_beats_as_many_principal_components():
    truth = torch.randn(12, 2, 5, 5)
    weights = torch.rand(600, 12) * (torch.rand(600, 12) < 0.2)
    x = torch.einsum("nc,cihw->nihw", weights, truth)
    sae, pca = ns.SAEMLP(2, 24, (5, 5), k=4), ns.FieldPCA(2, 4, (5, 5))
    ns.train(sae, x[:500], ns.TrainingConfig(n_epochs=20, batch_size=50, learning_rate=5e-3), progress=False)
    pca.fit(x[:500])
    metrics = ns.evaluate(sae, x[500:])
    assert metrics["l0"] <= 4
    assert metrics["fve"] > ns.evaluate(pca, x[500:])["fve"] + 0.1
    assert metrics["dead_fraction"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": ()}, r"the one grid that fields have, as in \(32, 32\), got \(\)"),
        ({"grid": "equiangular"}, "got 'equiangular'"),
        ({"grid": (6, 0)}, r"got \(6, 0\)"),
        ({"grid": (6, 7), "k": 12}, "k=12 concepts per sample, but the dictionary has n_concepts=11"),
        ({"grid": (6, 7, 8), "sht_grid": "lobatto"}, "sphere, which has n_dim=2, got 3"),
        ({"grid": (6, 8), "sht_grid": "healpix"}, "unknown grid 'healpix'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ns.SAEMLP(3, 11, **arguments)
