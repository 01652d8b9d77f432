import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.testing import check_model


def anisotropic(grid, n=6, channels=5):
    mixing = torch.randn(channels, channels) * torch.logspace(0, -2, channels)
    return torch.einsum("ij,nj...->ni...", mixing, torch.randn(n, channels, *grid)) + torch.randn(channels).view(
        -1, *(1,) * len(grid)
    )


@pytest.mark.parametrize("grid", [(9,), (6, 7), (3, 4, 5)])
def test_fve_of_channel_pca_is_the_share_of_the_leading_eigenvalues(grid):
    x = anisotropic(grid).double()
    points = x.flatten(2).transpose(1, 2).reshape(-1, 5).numpy()
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(points.T, bias=True)))[::-1]
    for p in (1, 3, 5):
        pca = ns.PCA(5, p, n_dim=len(grid)).double().eval()
        pca.fit(x)
        metrics = ns.evaluate(pca, x)
        assert metrics["fve"] == pytest.approx(eigenvalues[:p].sum() / eigenvalues.sum(), abs=1e-9)
        assert (metrics["l0"], metrics["l0_local"]) == pytest.approx((p, p))
        assert metrics["dead_fraction"] == 0
    codes = pca.encode(x).to_dense().transpose(0, 1).flatten(1)
    covariance = codes @ codes.T / codes.shape[1]
    torch.testing.assert_close(covariance, torch.as_tensor(eigenvalues.copy() / eigenvalues.mean()).diag())


@pytest.mark.parametrize("grid", [(9,), (6, 7)])
def test_fve_of_field_pca_is_the_share_of_the_leading_singular_values(grid):
    x = anisotropic(grid, n=8).double()
    centred = (x - x.mean(0)).flatten(1).numpy()
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    variance = float((x - x.mean((0, *range(2, x.ndim)), keepdim=True)).square().sum())
    for p in (1, 4, 7):
        pca = ns.FieldPCA(5, p, grid).double().eval()
        pca.fit(x)
        assert ns.evaluate(pca, x)["fve"] == pytest.approx(1 - values[p:].sum() / variance, abs=1e-9)
        assert ns.evaluate(pca, x)["l0"] == pytest.approx(p)


def test_on_the_sphere_points_count_by_area():
    x = anisotropic((9, 16)).double()
    channels, fields = ns.PCA(5, 5, grid="equiangular").double(), ns.FieldPCA(5, 3, (9, 16), sht_grid="equiangular").double()
    area = channels.basis.quadrature((9, 16), like=x).expand(9, 16)
    for pca in (channels, fields):
        pca.fit(x)
        torch.testing.assert_close(pca.mean, (x * area).sum((0, 2, 3)) / 6)
    codes = channels.encode(x).to_dense()
    covariance = torch.einsum("nchw,ndhw,hw->cd", codes, codes, area)
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-10, rtol=0)
    modes = fields.decoder_weight
    torch.testing.assert_close(torch.einsum("cihw,dihw,hw->cd", modes, modes, area), torch.eye(3).double())


@pytest.mark.parametrize(
    "pca",
    [ns.PCA(5, 3), ns.PCA(5, 3, grid="lobatto"), ns.FieldPCA(5, 3, (8, 14)), ns.FieldPCA(5, 3, (8, 14), sht_grid="lobatto")],
)
def test_pca_is_a_model_like_others(pca):
    x = anisotropic((8, 14))
    pca.fit(x)
    check_model(pca, x)
    norms = pca.basis.mean_square(pca.atoms([0, 2], (8, 14))).sum(1).sqrt()
    torch.testing.assert_close(norms, pca.kernel_norms()[[0, 2]])
    torch.testing.assert_close(pca.kernel_norms(), torch.ones(3))


def test_statistics_of_an_earlier_fit_leave_no_trace():
    x, pca, again = anisotropic((6, 7)), ns.PCA(5, 3), ns.PCA(5, 3)
    again.fit(100 * torch.randn_like(x) + 7)
    for each in (pca, again):
        each.fit(x)
    torch.testing.assert_close(again(x).reconstruction, pca(x).reconstruction)


def test_activations_that_are_read_when_asked_for_are_read_whole():
    x = torch.randn(6, 5, 4, 4)

    class Stored:
        def __getitem__(self, index):
            return x[index]

    fitted = [ns.PCA(5, 2), ns.PCA(5, 2)]
    for pca, activations in zip(fitted, (x, Stored()), strict=True):
        pca.fit(activations)
    assert torch.equal(fitted[0].decoder_weight, fitted[1].decoder_weight)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="5 channels have no 6 components"):
        ns.PCA(5, 6)
    with pytest.raises(ValueError, match="4 fields of 210 values have at most 3 components, not 4"):
        ns.FieldPCA(5, 4, (6, 7)).fit(torch.randn(4, 5, 6, 7))
    with pytest.raises(ValueError, match="are the activations constant"):
        ns.PCA(5, 3).fit(torch.ones(4, 5, 6, 7))
