"""Encoders that read with the decoder's adjoint, in one step or in several."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.layers import Selection, Spectrum
from neuralop_sae.layers.adjoint import TiedEncoder
from neuralop_sae.layers.lifting import Lifting
from neuralop_sae.layers.unrolled import Residual, SparseCodes, UnrolledEncoder, step_size
from neuralop_sae.testing import assert_equal, check_concept_layer, check_model, check_oracle

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {"concept_rule": "All", "domain_rule": "SoftLocalTopK"},
    "accelerated": {"accelerate": True, "n_iterations": 5},
    "no skip": {"skip": None, "selection": "exact"},
    "even modes, running threshold": {"n_modes": (4, 6), "concept_rule": ns.BatchTopK(2)},
    "gates": {"concept_rule": ns.JumpReLU(0.2, 0.3), "accelerate": True},
    "running thresholds per concept": {"domain_rule": ns.TopFraction(0.3), "selection": "energy"},
    "fixed code grid": {"code_grid": (6, 7), "domain_rule": ns.SoftThreshold(0.02)},
    "tucker": {"factorization": "tucker", "rank": 0.5},
    "cp": {"factorization": "cp", "rank": 0.5, "skip": None},
    "tt": {"factorization": "tt", "rank": 0.5},
    "basis": {"conv_module": "spherical", "n_modes": (4, 8), "conv_options": {"grid": "legendre-gauss"}},
}


def make(encoder: str = "unrolled", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    arguments = {"in_channels": 3, "n_concepts": 8, "n_modes": (5, 4), "concept_rule": ns.TopK(3), "domain_rule": "Rectify"}
    iterations = {"n_iterations": 4, "accelerate": False}
    sae: Any = ns.SAEFNO(**{**arguments, **iterations, "encoder": encoder, **kwargs})
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            if name.endswith("gain"):
                parameter.uniform_(0.5, 2)
    return sae


@pytest.mark.parametrize("encoder", ["tied", "unrolled"])
@pytest.mark.parametrize("name", VARIANTS)
def test_contract(name: str, encoder: str) -> None:
    sae = make(encoder, **VARIANTS[name])
    sae(torch.randn(4, 3, 9, 10))  # thresholds that run have run
    check_model(sae, torch.randn(3, 3, 9, 10))


@pytest.mark.parametrize("encoder", ["tied", "unrolled"])
@pytest.mark.parametrize("options", [{}, {"isotropic": True}, {"kernel": "positional"}, {"grid": "lobatto"}], ids=str)
def test_contract_on_the_sphere(options: dict[str, Any], encoder: str) -> None:
    torch.manual_seed(0)
    sae = ns.SAESFNO(3, 8, (4, 8), concept_rule=ns.TopK(3), domain_rule="Rectify", encoder=encoder, n_iterations=2, **options)
    check_model(sae, torch.randn(3, 3, 9, 16))


@pytest.mark.parametrize("arguments", [{}, {"skip": None, "n_modes": (4, 6)}, {"factorization": "tt"}], ids=str)
def test_contract_of_the_layer(arguments: dict[str, Any]) -> None:
    sae = make("tied", **arguments)
    check_concept_layer(sae.concept_encoder, sae.concept_decoder)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"skip": None}, {"n_modes": (4, 6)}, {"conv_module": "SphericalConv", "n_modes": (4, 8)}, {"factorization": "tt"}],
    ids=str,
)
def test_the_encoder_is_the_adjoint_of_neuralops_own_decoder(arguments: dict[str, Any]) -> None:
    """<D a, x> = <a, D* x> over the domain, by the decoder's dense path."""
    sae = make("tied", **arguments).double()
    decoder, basis = sae.concept_decoder, sae.basis
    with torch.no_grad():
        decoder.zero_bias()
        sae.concept_encoder.zero_bias()
        sae.concept_encoder.copy_adjoint(decoder)
        a, x = torch.randn(2, 8, 9, 10, dtype=torch.float64), torch.randn(2, 3, 9, 10, dtype=torch.float64)
        quadrature = basis.quadrature((9, 10), like=x)
        left = (decoder.dense_forward(a) * x * quadrature).sum()
        right = (a * sae.concept_encoder.dense_forward(x) * quadrature).sum()
        assert_equal("adjoint", right, left, scale=float(a.norm() / 10))


def test_a_tied_encoder_has_no_weights_of_its_own() -> None:
    names = {name for name, _ in make("tied").named_parameters() if name.startswith("concept_encoder")}
    assert names == {"concept_encoder.gain", "concept_encoder.bias"}
    assert {name for name, _ in make().named_parameters() if name.startswith("concept_encoder")} == {"concept_encoder.bias"}
    sae = make("tied")
    assert copy.deepcopy(sae).concept_encoder.decoder is not sae.concept_encoder.decoder
    assert set(sae.concept_axes()) > names


@pytest.mark.parametrize("domain_rule", ["Rectify", "Identity", ns.SoftThreshold(0.01), ns.LocalTopK(2)], ids=repr)
def test_one_iteration_is_one_proximal_step(domain_rule: Any) -> None:
    """From zero: prox(alpha D* x), which is what a tied encoder of gain alpha does."""
    one = make(n_iterations=1, domain_rule=domain_rule).double().eval()
    tied = make("tied", domain_rule=domain_rule).double().eval()
    one.concept_decoder.zero_bias()
    tied.load_state_dict({**one.state_dict(), "concept_encoder.gain": step_size(one.concept_decoder).repeat(8)})
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    out, expected = one(x), tied(x)
    assert torch.equal(out.codes.concept, expected.codes.concept)
    assert_equal("codes", out.codes.values, expected.codes.values)
    assert_equal("reconstruction", out.reconstruction, expected.reconstruction)


def operator(decoder: Any, grid: tuple[int, ...]) -> Tensor:
    """The decoder as a matrix, by one impulse after the other, in a metric where quadrature is uniform."""
    p, n = decoder.n_concepts, math.prod(grid)
    root = decoder.basis.quadrature(grid, like=torch.ones((), dtype=torch.float64)).expand(grid).flatten().sqrt()
    impulses = torch.eye(p * n, dtype=torch.float64).view(p * n, p, n) / root
    written = decoder.dense_forward(impulses.reshape(p * n, p, *grid)) - decoder.conv.bias
    return (written.flatten(2) * root).flatten(1).detach()


@pytest.mark.parametrize(
    ("arguments", "grid"),
    [
        ({}, (7, 7)),
        ({"skip": None}, (5, 5)),
        ({"n_modes": (4, 6)}, (6, 7)),
        ({"factorization": "tucker", "rank": 0.5}, (5, 7)),
        ({"factorization": "cp", "rank": 0.5, "skip": None}, (5, 7)),
        ({"factorization": "tt", "rank": 0.5}, (5, 7)),
        ({"conv_module": "SphericalConv", "n_modes": (3, 6)}, (5, 6)),
    ],
    ids=str,
)
def test_the_step_is_the_inverse_of_the_largest_eigenvalue(arguments: dict[str, Any], grid: tuple[int, ...]) -> None:
    """Of D D* as a matrix: never a longer step, nor a much shorter one."""
    decoder = make(**{"n_concepts": 4, "in_channels": 2, "concept_rule": "All", **arguments}).double().concept_decoder
    largest = torch.linalg.matrix_norm(operator(decoder, grid), 2) ** 2
    assert 0.5 < float(step_size(decoder) * largest) < 1 + 1e-10


@pytest.mark.parametrize("form", [None, "tucker"])
def test_the_step_is_exact_for_real_kernels_in_space(form: str | None) -> None:
    """Where no entry of the spectrum is redundant the bound is reached."""
    decoder = make(n_modes=(1, 9), n_concepts=4, concept_rule="All", factorization=form).double().concept_decoder
    with torch.no_grad():
        for parameter in decoder.conv.weight.parameters():
            parameter.imag.zero_()
    largest = torch.linalg.matrix_norm(operator(decoder, (3, 11)), 2) ** 2
    assert_equal("largest eigenvalue", 1 / step_size(decoder), largest)


def known(p: int = 12, k: int = 3) -> tuple[Any, Tensor]:
    """A model that holds the dictionary, and fields of k of its concepts each, expressed on a tenth of the domain."""
    sae = make(n_concepts=p, n_modes=(9, 9), concept_rule=ns.TopK(k), selection="exact").double().eval()
    with torch.no_grad():
        sae.concept_encoder.zero_bias()
        sae.concept_decoder.zero_bias()
    concepts = torch.rand(6, p).argsort(1)[:, :k]
    codes = torch.zeros(6, p, 16, 16, dtype=torch.float64)
    events = torch.rand(6, k, 16, 16, dtype=torch.float64) * (torch.rand(6, k, 16, 16) < 0.1)
    codes[torch.arange(6)[:, None], concepts] = events
    return sae, sae.denormalize(sae.concept_decoder.dense_forward(codes)).detach()


def errors(sae: Any, x: Tensor, numbers: list[int], **kwargs: Any) -> list[float]:
    """Relative errors of reconstruction with the same weights and other numbers of iterations."""
    found = []
    for n_iterations in numbers:
        other = type(sae)(**{**sae.config(), "n_iterations": n_iterations, **kwargs}).double().eval()
        other.load_state_dict(sae.state_dict(), strict=False)
        found.append(float((other(x).reconstruction - x).detach().norm() / x.norm()))
    return found


@pytest.mark.parametrize("rules", [{}, {"concept_rule": "All"}, {"concept_rule": "All", "domain_rule": "Identity"}], ids=str)
def test_iterations_lower_the_error(rules: dict[str, Any]) -> None:
    """On fields of a known dictionary the error of ISTA falls with every iteration, since each rule is a projection on the
    nearest codes that it allows; FISTA's is lower in the end."""
    sae, x = known()
    numbers = [1, 2, 3, 4, 6, 8, 12, 16, 24]
    plain = errors(sae, x, numbers, **rules)
    assert all(after < before * (1 + 1e-9) for before, after in itertools.pairwise(plain))
    assert plain[-1] < 0.6 * plain[0]
    assert errors(sae, x, numbers[-1:], accelerate=True, **rules)[0] < plain[-1]


def test_concepts_are_selected_inside_the_loop() -> None:
    """Iterations without selection spread a field over the dictionary: the k strongest of what they give describe it worse."""
    sae, x = known()
    inside = errors(sae, x, [16])[0]
    every = type(sae)(**{**sae.config(), "n_iterations": 16, "concept_rule": "All"}).double().eval()
    every.load_state_dict(sae.state_dict(), strict=False)
    out = every(x)
    strongest = torch.zeros_like(out.scores, dtype=torch.bool).scatter(1, out.scores.topk(3).indices, True)
    masked = every.decode(out.codes.keep(strongest[out.codes.sample, out.codes.concept]), x.shape[2:])
    assert inside < 0.8 * float((masked - x).detach().norm() / x.norm())


def test_running_thresholds_are_each_iterations_own() -> None:
    """Scores grow from iteration to iteration: with one threshold for all, hardly a concept would enter in eval mode."""
    sae = make(n_concepts=32, concept_rule=ns.BatchTopK(3, momentum=0.1), n_iterations=6)
    for _ in range(20):
        sae(torch.randn(8, 3, 9, 10))
    thresholds = [float(rule.threshold) for rule, _ in sae.earlier_rules] + [float(sae.concept_rule.threshold)]
    assert all(before < after for before, after in itertools.pairwise(thresholds))
    n_on = len(sae.eval().encode(torch.randn(64, 3, 9, 10))) / 64
    assert abs(n_on - 3) < 0.6


@pytest.mark.parametrize("accelerate", [False, True])
def test_codes_never_exist_for_concepts_that_are_off(accelerate: bool) -> None:
    """No tensor in a training step is as large as (batch, p, *grid)."""
    sae, x = make(n_concepts=256, n_modes=(5, 5), accelerate=accelerate), torch.randn(2, 3, 32, 32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(out)
            largest = max([largest, *(t.numel() for t in leaves if isinstance(t, Tensor))])
            return out

    with Watch():
        sae(x).reconstruction.sum().backward()
    assert largest < 2 * 256 * 32 * 32 / 5


def test_gradients_flow_through_every_iteration() -> None:
    """An iteration's gradient reaches the decoder through all that came before: the field that codes left too."""
    sae = make(n_iterations=3).double()
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    encoder, weight = sae.concept_encoder, sae.concept_decoder.conv.weight.tensor
    start = encoder.start(Spectrum.of(x, sae.basis))
    selection = Selection.from_index(torch.tensor([[0, 1], [2, 3]]), 8)
    first = encoder.gather(start, selection)
    residual = encoder.proceed(start, selection, first)
    other = Selection.from_index(torch.tensor([[4], [5]]), 8)
    (gradient,) = torch.autograd.grad(encoder.gather(residual, other).square().sum(), weight)
    assert (gradient.abs().sum((1, 2, 3)) > 0).tolist() == [True] * 6 + [False] * 2


def test_sparse_codes_are_found_by_sample_and_concept() -> None:
    selection = Selection.from_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool))
    codes = SparseCodes.of(selection, torch.arange(1.0, 4.0)[:, None])
    everything = Selection.from_mask(torch.ones(3, 3, dtype=torch.bool))
    assert codes.at(everything)[:, 0].tolist() == [1, 0, 2, 0, 0, 0, 0, 3, 0]
    assert torch.equal(codes.on(), selection.mask())


def test_energies_of_an_iteration_are_those_of_its_pre_codes() -> None:
    sae = make(concept_rule=ns.TopK(3)).double()
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    encoder = sae.concept_encoder
    start = encoder.start(Spectrum.of(x, sae.basis))
    selection = Selection.from_index(torch.tensor([[0, 1], [2, 3]]), 8)
    codes = torch.relu(encoder.gather(start, selection))
    residual = encoder.proceed(start, selection, codes)
    assert isinstance(residual, Residual)
    scattered = codes.new_zeros(2, 8, 9, 10).index_put((selection.sample, selection.concept), codes)
    pre_codes = encoder.dense_forward(x, scattered)
    energies = encoder.energies(residual)
    assert_equal("mean square", energies.mean_square, pre_codes.square().mean((2, 3)))
    assert_equal("mean", energies.mean, pre_codes.mean((2, 3)), scale=0.1)


@pytest.mark.parametrize("encoder", ["tied", "unrolled"])
def test_training(encoder: str) -> None:
    sae, x = make(encoder, concept_rule=ns.TopK(4)), torch.randn(16, 3, 9, 10)
    history = ns.train(sae, x, ns.TrainingConfig(n_epochs=8, batch_size=8, learning_rate=1e-2), progress=False)
    assert history.rows[-1]["fve"] > history.rows[0]["fve"]


@pytest.mark.parametrize("accelerate", [False, True])
def test_iterations_seen_through_a_lifting_are_those_of_the_projected_dictionary(accelerate: bool) -> None:
    """With any L, the residual formed before it: a plain model with the dictionary L^T D gives the same codes."""
    kwargs: dict[str, Any] = {"n_iterations": 4, "accelerate": accelerate, "concept_rule": "All"}
    lifted = make(in_channels=5, **kwargs).double().eval()
    plain = make(in_channels=3, **kwargs).double().eval()
    lifting = Lifting(3, 5).double()
    with torch.no_grad():
        lifting.weight.copy_(torch.randn(5, 3))
        mapped, decoder = lifting.weight, lifted.concept_decoder
        state = lifted.state_dict() | {"mean": torch.zeros(3)}
        state["concept_decoder.conv.weight.tensor"] = torch.einsum("chkl,hm->cmkl", decoder.conv.weight.tensor, mapped + 0j)
        state["concept_decoder.skip.conv.weight"] = torch.einsum("hcx,hm->mcx", decoder.skip.conv.weight, mapped)
        state["concept_decoder.conv.bias"] = torch.einsum("hxy,hm->mxy", decoder.conv.bias, mapped)
    plain.load_state_dict(state)
    lifted.concept_encoder.look_through(lifting)
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    expected = plain.encode(x).to_dense()
    assert_equal("codes", lifted.encode(lifting.lift(x)).to_dense(), expected)
    check_oracle(lifted, lifting.lift(x).detach())


@pytest.mark.parametrize("encoder", ["tied", "unrolled"])
def test_on_device(encoder: str, device: torch.device) -> None:
    for arguments in ({}, {"factorization": "tucker", "rank": 0.5, "accelerate": True}):
        sae, x = make(encoder, **arguments).double().eval(), torch.randn(2, 3, 9, 10, dtype=torch.float64)
        expected, moved = sae(x), copy.deepcopy(sae).to(device)
        assert_equal("reconstruction", moved(x.to(device)).reconstruction.cpu(), expected.reconstruction)
        check_oracle(moved.train(), x.to(device), f"on {device}")
        if not arguments:
            longer = torch.randn(2, 3, 18, 10, dtype=torch.float64)
            found = moved.eval().on_domain((2, 1))(longer.to(device)).reconstruction.cpu()
            assert_equal("on a longer box", found, sae.on_domain((2, 1))(longer).reconstruction)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="takes residuals of a linear decoder, got decoder='fno_block'"):
        make(decoder="fno_block")
    with pytest.raises(ValueError, match="n_iterations must be a positive int, got 0"):
        make(n_iterations=0)
    with pytest.raises(TypeError, match="the adjoint is known for kernels that can be read.*take encoder='linear'"):
        make("tied", conv_module=Pointwise)


class Pointwise(torch.nn.Conv2d):
    """A layer with neuralop's signature whose kernels nobody knows."""

    def __init__(self, in_channels: int, out_channels: int, n_modes: tuple[int, ...]) -> None:
        super().__init__(in_channels, out_channels, 1)


def test_encoders_of_one_decoder_are_told_apart() -> None:
    assert isinstance(make("tied").concept_encoder, TiedEncoder)
    assert isinstance(make().concept_encoder, UnrolledEncoder)
