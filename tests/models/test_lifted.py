"""Any SAE on lifted channels is a model like others. That it infers as a plain one is in test_facts.py."""

import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.testing import check_model

SAES = {
    "pointwise": ns.SAEPointwise(3, 10, k=3),
    "pointwise, sphere": ns.SAEPointwise(3, 10, k=3, grid="equiangular"),
    "mlp": ns.SAEMLP(3, 10, (9, 16), k=4),
    "cnn": ns.SAECNN(3, 10, (3, 2), concept_rule=ns.BatchTopK(4)),
    "fno": ns.SAEFNO(3, 10, (5, 5), concept_rule="JumpReLU", domain_rule=ns.LocalTopK(2)),
    "tfno": ns.SAETFNO(3, 10, (5, 5), concept_rule=ns.TopK(4), factorization="cp", rank=0.5),
    "sfno": ns.SAESFNO(3, 10, (4, 8), code_grid=(9, 16)),
}


@pytest.mark.parametrize("projection", ["tied", "untied"])
@pytest.mark.parametrize("name", SAES)
def test_a_lifted_sae_is_a_model_like_others(name, projection):
    sae = ns.Lifted(SAES[name], channels=7, projection=projection)
    sae.fit_normalization(torch.randn(3), 2.0)
    sae.initialize_from(torch.randn(4, 3, 9, 16))
    sae.train()(torch.randn(4, 3, 9, 16))
    check_model(sae, torch.randn(3, 3, 9, 16))


@pytest.mark.parametrize("name", ["fno", "pointwise"])
def test_it_trains_and_loads_as_one(name, tmp_path):
    x = torch.randn(24, 3, 9, 9) * torch.tensor([3.0, 1.0, 0.1]).view(3, 1, 1) + 1
    sae = ns.Lifted(SAES[name], channels=6)
    weight = sae.lifting.weight.detach().clone()
    history = ns.train(sae, x, ns.TrainingConfig(n_epochs=8, batch_size=8, log_every=3, dead_after=8), progress=False)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert not torch.equal(sae.lifting.weight, weight)
    torch.testing.assert_close(sae.mean, x.mean((0, 2, 3)))
    sae.save_pretrained(tmp_path)
    loaded = ns.load(tmp_path)
    assert isinstance(loaded, ns.Lifted)
    assert type(loaded.inner) is type(SAES[name])
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def test_the_model_that_is_given_is_a_pattern():
    pattern = ns.SAEFNO(3, 10, (5, 5), concept_rule=ns.TopK(4))
    before = {name: tensor.clone() for name, tensor in pattern.state_dict().items()}
    sae = ns.Lifted(pattern, channels=7)
    ns.train(sae, torch.randn(8, 3, 9, 9), ns.TrainingConfig(n_epochs=1, batch_size=4), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pattern.state_dict().items())
    described = ns.Lifted({"model": "SAEFNO", **pattern.config()}, channels=7)
    assert described.config() == sae.config()
    assert (described.in_channels, described.inner.in_channels, described.n_concepts) == (3, 7, 10)


def test_dead_concepts_write_in_the_units_of_the_activations():
    sae = ns.Lifted(SAES["pointwise"], channels=7).double()
    sae.fit_normalization(torch.randn(3), 2.0)
    x, dead = torch.randn(2, 3, 6, 6).double(), torch.arange(10) < 4
    inner = sae.inner(sae.lifting.lift(sae.normalize(x)), dead=dead, dead_k=2).dead_reconstruction
    expected = torch.einsum("hi,bhxy->bixy", sae.lifting.weight, inner) * 2.0
    torch.testing.assert_close(sae(x, dead=dead, dead_k=2).dead_reconstruction, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sae": "SAEFNO", "channels": 7}, TypeError, "sae is an SAE, or a dict of its arguments with 'model'"),
        ({"sae": {"model": "SAENO"}, "channels": 7}, ValueError, "unknown sparse autoencoder 'SAENO'; known: "),
        ({"sae": {"model": "SAEFNO", "n_concepts": 3}, "channels": 7}, ValueError, "in_channels is not given"),
        (
            {"sae": ns.Lifted(SAES["pointwise"], channels=7), "channels": 9},
            ValueError,
            "cannot be lifted once more",
        ),
        ({"sae": SAES["pointwise"], "channels": 2}, ValueError, "3 channels are lifted to as many or more"),
        ({"sae": SAES["pointwise"], "channels": 7, "residual": "both"}, ValueError, "unknown residual 'both'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ns.Lifted(**arguments)


@pytest.mark.parametrize("name", ["fno", "tfno", "sfno", "cnn", "mlp", "pointwise"])
def test_kernel_norms_have_a_gradient(name):
    """With respect to the lifting and to the dictionary, that of the norms of the projected atoms."""
    sae = ns.Lifted(SAES[name], channels=5).double()
    concepts = torch.tensor([7, 0, 2])
    norms = sae.kernel_norms(concepts)
    torch.testing.assert_close(norms, sae.kernel_norms()[concepts])
    names, parameters = zip(*((n, p) for n, p in sae.named_parameters() if "decoder" in n and "bias" not in n), strict=True)
    parameters = (sae.lifting.weight, *parameters)
    gradients = torch.autograd.grad(norms.sum(), parameters)
    for name, parameter, gradient in zip(("lifting", *names), parameters, gradients, strict=True):
        step = 1e-6 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step)
            more = sae.kernel_norms(concepts).sum()
            parameter.sub_(2 * step)
            less = sae.kernel_norms(concepts).sum()
            parameter.add_(step)
        expected = (gradient.conj() * step).real.sum() if step.is_complex() else (gradient * step).sum()
        torch.testing.assert_close((more - less) / 2, expected, rtol=1e-5, atol=1e-12, msg=name)


def test_a_penalty_on_lifted_codes_makes_them_fewer():
    x = torch.randn(32, 3, 8, 8)
    areas = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        sae = ns.Lifted(ns.SAEFNO(3, 10, (5, 5), domain_rule="Rectify"), channels=6)
        config = ns.TrainingConfig(n_epochs=10, batch_size=8, learning_rate=1e-2, domain_weight=weight)
        ns.train(sae, x, config, progress=False)
        areas.append(ns.evaluate(sae, x)["l0_local"])
    assert areas[1] < 0.7 * areas[0]
