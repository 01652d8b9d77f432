import pytest
import torch

import neuralop_sae as ns


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
