import math
from itertools import product

import pytest
import torch
from configmypy import Bunch
from neuralop.models import get_model

import neuralop_sae as ns
from neuralop_sae.testing import check_model

MODELS = {
    "1-d": {"kernel_size": 4, "concept_rule": ns.TopK(3), "domain_rule": "Rectify"},
    "2-d": {"kernel_size": (3, 4)},
    "2-d, batch": {"kernel_size": (3, 3), "concept_rule": ns.BatchTopK(3), "domain_rule": "TopFraction"},
    "3-d": {"kernel_size": (3, 2, 3), "concept_rule": "JumpReLU", "domain_rule": "SoftThreshold"},
    "wrapped": {"kernel_size": (3, 11)},
    "physical": {"kernel_size": (3, 3), "taps": "physical", "reference_grid": (8, 8), "concept_rule": ns.TopK(3)},
}


def random_sae(**arguments):
    sae = ns.SAECNN(3, 10, **arguments)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(0, 0.5)
        sae.fit_normalization(torch.randn(3), 2.0)
    return sae


@pytest.mark.parametrize("name", MODELS)
def test_sae_cnn_is_a_model_like_others(name, tmp_path):
    sae = random_sae(**MODELS[name])
    x = torch.randn(3, 3, *(12, 6, 5)[: sae.n_dim])
    sae.train()(x)
    check_model(sae, torch.randn_like(x))
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[1, 4]] = True
    sae.zero_grad()
    sae(x, dead=dead, dead_k=4).dead_reconstruction.square().sum().backward()
    assert sae.encoder_weight.grad.flatten(1).any(1).nonzero()[:, 0].tolist() == [1, 4]


def test_sae_cnn_is_registered_with_neuralop():
    model = {"model_arch": "saecnn", "data_channels": 3, "n_concepts": 11, "kernel_size": [3, 3]}
    sae = get_model(Bunch({"model": model, "patching": {"levels": 0}}))
    assert isinstance(sae, ns.SAECNN)
    assert (sae.kernel_size, sae.n_dim) == ((3, 3), 2)


@pytest.mark.parametrize(("grid", "kernel_size"), [((7,), (4,)), ((5, 6), (3, 2)), ((3, 4, 3), (2, 3, 1)), ((5, 4), (3, 9))])
def test_pre_codes_and_reconstruction_are_sums_over_offsets(grid, kernel_size):
    sae = random_sae(kernel_size=kernel_size, domain_rule="Rectify").double().eval()
    x = torch.randn(2, 3, *grid).double()
    field = sae.normalize(x)
    codes = torch.zeros(2, 10, *grid).double()
    for tap in product(*(range(size) for size in kernel_size)):
        offset = [size // 2 - index for size, index in zip(kernel_size, tap, strict=True)]  # x(s + t) is x rolled by -t
        shifted = field.roll(offset, tuple(range(2, field.ndim)))
        codes += torch.einsum("ci,bi...->bc...", sae.encoder_weight[(..., *tap)] / math.prod(kernel_size), shifted)
    codes = torch.relu(codes + sae.encoder_bias.view(-1, *(1,) * len(grid)))
    torch.testing.assert_close(sae.encode(x).to_dense(), codes)
    written = torch.zeros_like(field)
    for tap in product(*(range(size) for size in kernel_size)):
        offset = [index - size // 2 for size, index in zip(kernel_size, tap, strict=True)]
        shifted = codes.roll(offset, tuple(range(2, field.ndim)))
        written += torch.einsum("ci,bc...->bi...", sae.decoder_weight[(..., *tap)] / math.prod(kernel_size), shifted)
    expected = sae.denormalize(written + sae.decoder_bias.view(-1, *(1,) * len(grid)))
    torch.testing.assert_close(sae(x).reconstruction, expected)


@pytest.mark.parametrize("name", ["1-d", "2-d", "physical"])
def test_atoms_are_what_an_impulse_of_norm_one_writes(name):
    sae = random_sae(**MODELS[name]).double().eval()
    grid = (8,) * sae.n_dim
    impulse = torch.zeros(1, *grid).double()
    impulse[(0, *(4,) * sae.n_dim)] = 8 ** (sae.n_dim / 2)
    torch.testing.assert_close(sae.basis.mean_square(impulse), torch.ones(1).double())
    codes = ns.ConceptCodes(torch.tensor([0]), torch.tensor([3]), impulse, 1, 10, sae.basis)
    nothing = ns.ConceptCodes(torch.tensor([0]), torch.tensor([3]), 0 * impulse, 1, 10, sae.basis)
    written = (sae.decode(codes) - sae.decode(nothing)) / sae.scale
    torch.testing.assert_close(sae.atoms([3], grid), written)
    torch.testing.assert_close(sae.basis.mean_square(written).sum(1).sqrt(), sae.kernel_norms()[[3]])


def smooth_fields(n_points):
    """The same band-limited fields, two channels, on a grid of so many points, ``(4, 2, n_points)``."""
    k = torch.arange(1, 5, dtype=torch.float64)
    phase = torch.rand(4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.arange(n_points, dtype=torch.float64) / n_points
    return torch.sin(2 * torch.pi * (k[:, None] * s + phase[..., None])).sum(2)


def test_physical_taps_mean_the_same_on_other_grids_and_fixed_taps_do_not():
    arguments = {"kernel_size": 9, "concept_rule": ns.TopK(4), "domain_rule": "Rectify"}
    physical = ns.SAECNN(2, 12, taps="physical", reference_grid=32, **arguments).double().eval()
    fixed = ns.SAECNN(2, 12, **arguments).double().eval()
    fixed.load_state_dict(physical.state_dict())
    reference, fine = smooth_fields(32), smooth_fields(64)
    torch.testing.assert_close(physical(reference).reconstruction, fixed(reference).reconstruction, rtol=0, atol=0)
    same, other = (ns.code_consistency(sae, reference, fine)["code_consistency"] for sae in (physical, fixed))
    assert same > 0.98
    assert other < 0.7
    wide = physical.atoms([2, 5], (64,))[..., ::2]
    torch.testing.assert_close(wide, physical.atoms([2, 5], (32,)))


def test_training_starts_from_patches_at_the_best_gain():
    x = torch.randn(8, 3, 6, 7).double()
    sae = ns.SAECNN(3, 10, (3, 3), concept_rule=ns.BatchTopK(3)).double().train()
    before = {name: value.clone() for name, value in sae.concept_rule.state_dict().items()}
    sae.initialize_from(x, torch.Generator().manual_seed(0))
    assert sae.training
    assert all(torch.equal(value, before[name]) for name, value in sae.concept_rule.state_dict().items())
    torch.testing.assert_close(sae.decoder_weight.square().mean((2, 3)).sum(1), torch.ones(10).double())
    patches = torch.stack([x.roll((1 - i, 1 - j), (2, 3))[..., :3, :3] for i in range(6) for j in range(7)]).flatten(0, 1)
    cosine = cosines(sae.decoder_weight.detach(), patches)
    torch.testing.assert_close(cosine.max(1).values, torch.ones(10).double())
    written = sae.eval()(x).reconstruction.detach()
    assert float((written * (x - written)).sum()) == pytest.approx(0, abs=1e-9 * float(x.square().sum()))


@pytest.mark.parametrize("kernel_size", [3, 21])
def test_weights_and_codes_are_as_large_whatever_the_size_of_a_kernel(kernel_size):
    """A step of one learning rate is then as large a change of a wide kernel as of a narrow one."""
    vectors = torch.randn(32, 4)
    x = vectors[..., None].expand(32, 4, 64)
    sae = ns.SAECNN(4, 10, kernel_size, domain_rule="Rectify").eval()
    ones = torch.ones(10)
    for weight in (sae.encoder_weight, sae.decoder_weight):
        torch.testing.assert_close(weight.detach().square().mean(2).sum(1), ones)
    sae.initialize_from(x, torch.Generator().manual_seed(0))
    directions = sae.decoder_weight.detach()[..., 0]
    torch.testing.assert_close(directions.norm(dim=1), ones)
    sae.encoder_weight.data.copy_(sae.decoder_weight)
    torch.testing.assert_close(sae.encode(x).to_dense().detach()[..., 0], torch.relu(vectors @ directions.T))


def test_norms_of_named_concepts_carry_a_gradient():
    sae = random_sae(kernel_size=(3, 4))
    assert not sae.kernel_norms().requires_grad
    norms = sae.kernel_norms(torch.tensor([7, 2]))
    torch.testing.assert_close(norms.detach(), sae.kernel_norms()[[7, 2]])
    norms.sum().backward()
    weight = sae.decoder_weight.detach()
    expected = torch.zeros_like(weight)
    expected[[7, 2]] = (weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / 12)[[7, 2]]
    torch.testing.assert_close(sae.decoder_weight.grad, expected)


def cosines(a, b):
    a, b = (each.flatten(1) / each.flatten(1).norm(dim=1, keepdim=True) for each in (a, b))
    return a @ b.T


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (3, 3, 3, 3)}, "1 to 3 dimensions, kernel_size="),
        ({"kernel_size": ()}, "kernel_size needs one positive number"),
        ({"kernel_size": (3, 0)}, "kernel_size must be a positive whole number, got 0"),
        ({"kernel_size": 3, "taps": "free"}, "unknown taps 'free'; known: fixed, physical"),
        ({"kernel_size": 3, "taps": "physical"}, "needs a reference_grid"),
        ({"kernel_size": 3, "reference_grid": 32}, "'fixed' takes none"),
        ({"kernel_size": 3, "taps": "physical", "reference_grid": (8, 8)}, "a grid of 1 positive sizes"),
        ({"kernel_size": 3, "concept_rule": ns.TopK(11)}, "k=11"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ns.SAECNN(3, 10, **arguments)
