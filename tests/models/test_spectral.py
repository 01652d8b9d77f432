"""The sparse path against the dense oracle, and what makes codes functions: grids, shifts, atoms."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralop_sae.layers import (
    All,
    BatchTopK,
    FourierBasis,
    Identity,
    JumpReLU,
    LocalTopK,
    Rectify,
    SoftLocalTopK,
    SoftThreshold,
    TopFraction,
    TopK,
)
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.models import SAEFNO, spectral
from neuralop_sae.models.starts import kernels_from
from neuralop_sae.testing import assert_equal, check_oracle

CONCEPT_RULES = [All(), TopK(3), BatchTopK(3), JumpReLU(0.4, 0.3)]
DOMAIN_RULES = [Rectify(), SoftThreshold(0.05), LocalTopK(2), SoftLocalTopK(2), TopFraction(0.2), Identity()]


def make(modes: int | tuple[int, ...] = (5, 4), m: int = 3, p: int = 8, **kwargs: Any) -> Any:
    """A model whose concepts differ in sign, size and offset."""
    arguments: dict[str, Any] = {"concept_rule": TopK(3), "domain_rule": "Rectify"} | kwargs
    sae: Any = SAEFNO(m, p, modes, **arguments)
    with torch.no_grad():
        sae.concept_encoder.conv.bias.normal_(0, 0.2)
        sae.concept_decoder.conv.bias.normal_(0, 0.2)
        for parameter in sae.concept_encoder.conv.weight.parameters():
            parameter.mul_(1.5)
    sae.fit_normalization(torch.randn(m), 1.7)
    return sae


def band_limited(grid: tuple[int, ...], n: int = 2, m: int = 3, modes: int = 5, seed: int = 0) -> Tensor:
    """A real function with random Fourier coefficients, at the points of a grid."""
    basis = FourierBasis((modes,) * len(grid))
    pair = torch.randn(n, m, *basis.mode_shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return basis.synthesis(torch.view_as_complex(pair), grid)


def oracle(sae: SAEFNO, x: Tensor) -> None:
    sae = sae.to(x.dtype)
    for training in (True, False):
        check_oracle(copy.deepcopy(sae).train(training), x, f"training={training}", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code_grid", ["input", (11, 10), (5, 6)])
@pytest.mark.parametrize("domain_rule", [rule for rule in DOMAIN_RULES if not isinstance(rule, SoftLocalTopK)], ids=repr)
@pytest.mark.parametrize("concept_rule", CONCEPT_RULES, ids=repr)
def test_sparse_is_dense_for_every_rule(concept_rule: Any, domain_rule: Any, code_grid: Any, dtype: torch.dtype) -> None:
    sae = make(concept_rule=concept_rule, domain_rule=domain_rule, code_grid=code_grid)
    oracle(sae, torch.randn(3, 3, 8, 9, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code_grid", ["input", (11, 10)])
@pytest.mark.parametrize(
    "concept_rule",
    [
        All(),
        TopK(3),
        BatchTopK(3),
        JumpReLU(0.4, 0.3),
    ],
    ids=repr,
)
def test_sparse_is_dense_for_the_soft_rule(concept_rule: Any, code_grid: Any, dtype: torch.dtype) -> None:
    sae = make(concept_rule=concept_rule, domain_rule=SoftLocalTopK(2), code_grid=code_grid)
    oracle(sae, torch.randn(3, 3, 8, 9, dtype=dtype))


@pytest.mark.parametrize("selection", ["two_stage", "energy", "exact"])
@pytest.mark.parametrize(
    ("modes", "grid"),
    [((7,), (13,)), ((6,), (6,)), ((8, 6), (8, 8)), ((7, 7), (9, 6)), ((9, 9), (6, 7)), ((4, 3, 4), (5, 6, 7))],
)
def test_sparse_is_dense_on_every_grid(modes: tuple[int, ...], grid: tuple[int, ...], selection: str) -> None:
    sae = make(modes, selection=selection, oversample=1, concept_rule=BatchTopK(2), domain_rule=LocalTopK(1))
    oracle(sae, torch.randn(2, 3, *grid, dtype=torch.float64))


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize(("factorization", "rank"), [("tucker", 0.4), ("cp", 0.4), ("tt", 0.4), ("tucker", (2, 5, 3, 2))])
def test_sparse_is_dense_for_factorised_weights(factorization: str, rank: Any, skip: str | None) -> None:
    if factorization == "tucker" and isinstance(rank, tuple):
        rank = [min(rank)] * 4
    sae = make(factorization=factorization, rank=rank, skip=skip, domain_rule=LocalTopK(2))
    oracle(sae, torch.randn(2, 3, 8, 9, dtype=torch.float64))


@pytest.mark.parametrize("encoder", ["linear", "fno_block"])
@pytest.mark.parametrize("decoder", ["linear", "fno_block"])
def test_sparse_is_dense_with_trunks(encoder: str, decoder: str) -> None:
    sae = make(encoder=encoder, decoder=decoder, concept_rule=JumpReLU(0.3, 0.3))
    oracle(sae, torch.randn(2, 3, 9, 8, dtype=torch.float64))
    oracle(sae, torch.randn(2, 3, 9, 8, dtype=torch.float32))


def test_ranking_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = make(selection="exact").double().eval(), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    expected = sae(x)
    monkeypatch.setattr(spectral, "_CHUNK_BYTES", 1)
    out = sae(x)
    assert_equal("scores", out.scores, expected.scores)
    assert torch.equal(out.codes.concept, expected.codes.concept)


def test_scores_are_code_norm_times_kernel_norm() -> None:
    for selection in ("exact", "two_stage"):
        sae = make(selection=selection).double().eval()
        out = sae(torch.randn(3, 3, 8, 9, dtype=torch.float64))
        scores = out.scores[out.codes.sample, out.codes.concept]
        assert_equal("scores", scores, out.codes.norms() * sae.kernel_norms()[out.codes.concept])


def test_scale_cannot_be_traded_between_code_and_kernel() -> None:
    """A decoder's concept made s times larger, its encoder s times smaller: the same selection and reconstruction."""
    sae, x = make(domain_rule="Identity").double().eval(), torch.randn(3, 3, 8, 9, dtype=torch.float64)
    expected = sae(x)
    factors = torch.linspace(0.2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        sae.concept_decoder.scale_concepts(factors)
        encoder = sae.concept_encoder
        encoder.conv.weight.tensor.div_(factors.view(1, -1, 1, 1))
        encoder.skip.conv.weight.div_(factors.view(-1, 1, 1))
        encoder.conv.bias.div_(factors.view(-1, 1, 1))
    out = sae(x)
    assert torch.equal(out.codes.concept, expected.codes.concept)
    assert_equal("scores", out.scores, expected.scores)
    assert_equal("reconstruction", out.reconstruction, expected.reconstruction)


@pytest.mark.parametrize("rule", [JumpReLU(0.3, 0.2), BatchTopK(2)], ids=repr)
@pytest.mark.parametrize("domain_rule", DOMAIN_RULES, ids=repr)
def test_two_stage_misses_nothing_above_a_threshold(rule: Any, domain_rule: Any) -> None:
    """In eval mode candidates come from an upper bound, so that two_stage is exact for rules with a threshold."""
    sae, x = make(concept_rule=rule, domain_rule=domain_rule).double(), torch.randn(4, 3, 8, 9, dtype=torch.float64)
    sae(x)
    sae.eval()
    found = sae.encode(x)
    sae.selection = "exact"
    expected = sae.encode(x)
    assert len(expected)
    assert torch.equal(found.selection.mask(), expected.selection.mask())


def test_a_wholly_negative_response_does_not_rank_high() -> None:
    sae = make(selection="two_stage", oversample=1, concept_rule=TopK(1)).eval()
    with torch.no_grad():
        sae.concept_encoder.conv.bias[2] = -50.0
    assert (sae.encode(torch.randn(4, 3, 8, 9)).concept != 2).all()


@pytest.mark.parametrize("code_grid", ["input", (6, 6)])
@pytest.mark.parametrize("rule", [*CONCEPT_RULES, JumpReLU(1e6)], ids=repr)
def test_nothing_is_on_for_the_mean_field(rule: Any, code_grid: Any) -> None:
    """A field equal to the mean with zero biases has no codes; its reconstruction is finite and equals the oracle's."""
    sae = make(concept_rule=rule, code_grid=code_grid)
    with torch.no_grad():
        sae.concept_encoder.conv.bias.zero_()
    x = sae.mean.view(1, 3, 1, 1).expand(2, 3, 8, 9).clone().requires_grad_()
    for training in (True, False):
        out = sae.train(training)(x)
        assert not out.codes.expressed().any()  # TopK keeps k pairs per sample in training, of score zero here
        assert training or len(out.codes) == 0
        assert out.codes.to_dense().shape[:2] == (2, 8)
        expected = sae.denormalize(sae.concept_decoder.conv.bias.expand(2, 3, 8, 9))
        assert_equal("the decoder's bias", out.reconstruction, expected)
        assert_equal("dense", sae.dense_forward(x).reconstruction, expected)
        out.reconstruction.sum().backward()
        assert sae.concept_decoder.conv.bias.grad.isfinite().all()


def test_a_sample_without_concepts_beside_one_with() -> None:
    sae = make(concept_rule=JumpReLU(0.5)).double().eval()
    x = torch.randn(3, 3, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        sae.concept_encoder.conv.bias.zero_()
    x[1] = sae.mean.view(3, 1, 1)
    out = sae(x)
    assert set(out.codes.sample.tolist()) == {0, 2}
    assert_equal("dense", out.reconstruction, sae.dense_forward(x).reconstruction)


@pytest.mark.parametrize("rule", [TopK(3), BatchTopK(3), JumpReLU(0.3)], ids=repr)
@pytest.mark.parametrize("domain_rule", DOMAIN_RULES, ids=repr)
def test_eval_is_a_function_of_the_sample_alone(rule: Any, domain_rule: Any) -> None:
    sae, x = make(concept_rule=rule, domain_rule=domain_rule).double(), torch.randn(4, 3, 8, 9, dtype=torch.float64)
    for _ in range(2):
        sae(torch.randn(4, 3, 8, 9, dtype=torch.float64))
    sae.eval()
    together = sae(x)
    alone = torch.cat([sae(sample[None]).reconstruction for sample in x])
    assert_equal("one by one", alone, together.reconstruction)
    larger = sae(torch.cat([100 * torch.randn_like(x), x]))
    assert_equal("in a batch with strong samples", larger.reconstruction[4:], together.reconstruction)


def test_batch_topk_saved_gives_the_same_on_another_batch_size(tmp_path: Any) -> None:
    sae = make(concept_rule=BatchTopK(2, momentum=0.5))
    for _ in range(3):
        sae(torch.randn(4, 3, 8, 9))
    sae.save_pretrained(tmp_path / "sae")
    loaded, x = SAEFNO.from_pretrained(tmp_path / "sae"), torch.randn(7, 3, 8, 9)
    assert sae.concept_rule.threshold > 0
    assert loaded.concept_rule.threshold == sae.concept_rule.threshold
    sae.eval()
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)
    assert_equal("batch of one", loaded(x[3:4]).reconstruction, sae(x).reconstruction[3:4])


def test_batch_topk_scale_of_batch_does_not_change_the_mean_number_of_concepts() -> None:
    sae = make(concept_rule=BatchTopK(2), selection="exact")
    for batch in (1, 4, 9):
        assert len(sae(torch.randn(batch, 3, 8, 9)).codes) == 2 * batch


def test_jumprelu_thresholds_learn_from_the_reconstruction_and_from_the_gates() -> None:
    sae, x = make(concept_rule=JumpReLU(0.4, bandwidth=0.5)).double(), torch.randn(3, 3, 8, 9, dtype=torch.float64)
    out = sae(x)
    from_gates = torch.autograd.grad(out.gates.sum(), sae.concept_rule.thresholds, retain_graph=True)[0]
    scores = out.scores[out.codes.sample, out.codes.concept]
    near = ((scores - 0.4).abs() < 0.25).double()
    expected = torch.zeros(8, dtype=torch.float64).index_add(0, out.codes.concept, -near / 0.5)
    assert near.any()
    assert torch.equal(out.gates, (scores > 0.4).double())
    assert_equal("from the gates", from_gates, expected)
    loss = (out.reconstruction - x).square().sum()
    from_reconstruction = torch.autograd.grad(loss, sae.concept_rule.thresholds)[0]
    assert (from_reconstruction[expected < 0] != 0).all()
    assert not from_reconstruction[expected == 0].any()


@pytest.mark.parametrize("rule", [Rectify(), LocalTopK(2), Identity()], ids=repr)
def test_fixed_code_grid_makes_codes_independent_of_the_inputs_grid(rule: Any) -> None:
    sae = make((5, 5), code_grid=(12, 12), domain_rule=rule).double().eval()
    outs = {n: sae(band_limited((n, n + 1))) for n in (12, 15, 24, 41)}
    reference = outs[41]
    for n, out in outs.items():
        assert torch.equal(out.codes.concept, reference.codes.concept)
        assert_equal(f"codes at {n}", out.codes.values, reference.codes.values)
        assert_equal(f"scores at {n}", out.scores, reference.scores)
        expected = sae.decode(reference.codes, (n, n + 1))
        assert_equal(f"reconstruction at {n}", out.reconstruction, expected)
    twice = sae(band_limited((48, 60)))
    assert_equal("every second point", twice.reconstruction[..., ::2, ::2], sae(band_limited((24, 30))).reconstruction)


def test_input_code_grid_depends_on_the_grid_by_aliasing_only() -> None:
    """Why the fixed grid exists: with a rectifier on the input's own grid, reconstructions converge but differ."""
    sae = make((5, 5)).double().eval()
    at = {n: sae(band_limited((n, n))).reconstruction[..., :: n // 8, :: n // 8] for n in (8, 16, 64)}
    coarse, fine = ((at[n] - at[64]).norm() / at[64].norm() for n in (8, 16))
    assert fine < coarse / 2
    assert fine > 1e-6


@pytest.mark.parametrize("code_grid", ["input", (6, 5)])
@pytest.mark.parametrize("kind", ["linear", "fno_block"])
@pytest.mark.parametrize("domain_rule", DOMAIN_RULES, ids=repr)
def test_shift_equivariance_is_exact(domain_rule: Any, kind: str, code_grid: Any) -> None:
    """A shift by points of both grids shifts codes and reconstruction and changes no selection."""
    sae = make(domain_rule=domain_rule, encoder=kind, decoder=kind, code_grid=code_grid).double().eval()
    x = torch.randn(2, 3, 12, 15, dtype=torch.float64)
    shift, code_shift = ((4, 6), (2, 2)) if code_grid != "input" else ((5, 7), (5, 7))
    out, shifted = sae(x), sae(x.roll(shift, (2, 3)))
    assert torch.equal(shifted.codes.concept, out.codes.concept)
    assert_equal("codes", shifted.codes.values, out.codes.values.roll(code_shift, (1, 2)))
    assert_equal("reconstruction", shifted.reconstruction, out.reconstruction.roll(shift, (2, 3)))


@pytest.mark.parametrize("decoder", ["linear", "fno_block"])
def test_atoms_are_what_the_decoder_writes_for_an_impulse(decoder: str) -> None:
    """Decode the codes that hold one unit impulse each, less what is decoded from nothing."""
    sae = make((5, 5), decoder=decoder).double().eval()
    grid = (12, 10)
    basis = sae.basis
    impulse = basis.synthesis(torch.ones(basis.mode_shape, dtype=torch.complex128), grid).roll((6, 5), (0, 1))
    impulse = impulse / impulse.square().mean().sqrt()
    codes = sae.encode(torch.randn(8, 3, *grid, dtype=torch.float64))
    everything = torch.arange(8)
    one_each = type(codes)(everything, everything, impulse.expand(8, *grid), 8, 8, basis)
    nothing = one_each.keep(torch.zeros(8, dtype=torch.bool))
    expected = (sae.decode(one_each) - sae.decode(nothing)) / sae.scale
    assert_equal("atoms", sae.atoms(range(8), grid), expected)
    if decoder == "linear":
        assert_equal("norms", sae.kernel_norms(), expected.square().mean((2, 3)).sum(1).sqrt())


def test_atoms_are_checked() -> None:
    with pytest.raises(ValueError, match="out of range"):
        make().atoms([8], (8, 8))
    with pytest.raises(ValueError, match="a grid of 2 positive sizes is needed"):
        make().atoms([1], (8,))


def test_decode_on_other_grids_and_by_superposition() -> None:
    sae, x = make((5, 5), code_grid=(9, 9)).double().eval(), band_limited((16, 16))
    codes = sae.encode(x)
    assert sae.decode(codes).shape == (2, 3, 9, 9)
    assert_equal("every second point", sae.decode(codes, (32, 32))[..., ::2, ::2], sae.decode(codes, (16, 16)))
    some = codes.concept % 2 == 0
    nothing = sae.decode(codes.keep(some & ~some), (16, 16))
    both = sae.decode(codes.keep(some), (16, 16)) + sae.decode(codes.keep(~some), (16, 16)) - nothing
    assert_equal("superposition", both, sae.decode(codes, (16, 16)))
    with pytest.raises(ValueError, match="codes of 8 concepts, but this model has n_concepts=5"):
        make(p=5).decode(codes)


def test_reconstruction_of_a_field_that_is_one_concept() -> None:
    """With orthonormal pointwise concepts and no spectral part, a field made of few concepts is coded exactly."""
    sae = make(m=4, p=4, concept_rule=TopK(2), domain_rule="Rectify").double().eval()
    with torch.no_grad():
        for layer in (sae.concept_encoder, sae.concept_decoder):
            layer.conv.weight.tensor.zero_()
            layer.conv.bias.zero_()
            layer.skip.conv.weight.copy_(torch.eye(4)[..., None])
    codes = torch.rand(3, 2, 8, 9, dtype=torch.float64)
    x = torch.zeros(3, 4, 8, 9, dtype=torch.float64)
    x[:, 1], x[:, 3] = codes[:, 0], codes[:, 1]
    field = x * sae.scale + sae.mean.view(4, 1, 1)
    out = sae(field)
    assert_equal("codes", out.codes.to_dense(), x)
    assert_equal("reconstruction", out.reconstruction, field)


def test_initial_state() -> None:
    sae: Any = SAEFNO(4, 10, (5, 5), concept_rule=TopK(2)).double()
    ones = torch.ones(10, dtype=torch.float64)
    assert_equal("atoms of norm one", sae.kernel_norms(), ones, factor=1e5)  # made in single precision
    encoder, decoder = sae.concept_encoder, sae.concept_decoder
    adjoint = decoder.conv.weight.to_tensor().conj().transpose(0, 1)
    assert torch.equal(encoder.conv.weight.to_tensor(), adjoint)
    assert torch.equal(encoder.skip.conv.weight, decoder.skip.conv.weight.transpose(0, 1))
    assert not encoder.conv.bias.any()
    assert not decoder.conv.bias.any()


def test_initialize_from_starts_concepts_at_activations() -> None:
    """With activations along three directions only, pointwise parts are these directions."""
    sae = make(m=3, p=8).double()
    sae.fit_normalization(torch.zeros(3), 1.0)
    axes = torch.eye(3, dtype=torch.float64)
    x = axes[torch.randint(3, (4, 8, 9))].permute(0, 3, 1, 2) * 2.5
    sae.initialize_from(x, torch.Generator().manual_seed(0))
    pointwise = sae.concept_decoder.skip.conv.weight[..., 0].T
    assert ((pointwise / pointwise.norm(dim=1, keepdim=True)).abs().max(1).values > 1 - 1e-9).all()
    assert_equal("norms", sae.kernel_norms(), torch.ones(8, dtype=torch.float64))
    again = make(m=3, p=8).double()
    again.fit_normalization(torch.zeros(3), 1.0)
    again.initialize_from(x, torch.Generator().manual_seed(0))
    assert torch.equal(
        again.concept_decoder.skip.conv.weight[..., 0].sign(), sae.concept_decoder.skip.conv.weight[..., 0].sign()
    )
    sae.initialize_from(torch.zeros(2, 3, 8, 9))
    assert all(parameter.isfinite().all() for parameter in sae.parameters())


@pytest.mark.parametrize("encoder", ["linear", "tied", "unrolled", "fno_block"])
def test_initialize_from_starts_kernels_at_fields(encoder: str) -> None:
    """Without a pointwise part: atoms of one norm and, of one-step encoders, the gain that fits best."""
    x = band_limited((8, 9))
    sae: Any = SAEFNO(3, 8, (5, 4), encoder=encoder, skip=None, concept_rule=BatchTopK(3), domain_rule="Rectify").double()
    sae.fit_normalization(x.mean((0, 2, 3)), 1.7)
    rules = {name: value.clone() for name, value in sae.concept_rule.state_dict().items()}
    sae.train().initialize_from(x, torch.Generator().manual_seed(0))
    assert sae.training
    assert all(torch.equal(value, rules[name]) for name, value in sae.concept_rule.state_dict().items())
    norms = sae.kernel_norms()
    assert_equal("norms", norms, norms.mean().expand(8), factor=10)
    expected: Any = kernels_from(sae.normalize(x), 8, sae.basis, torch.Generator().manual_seed(0))
    weight = sae.concept_decoder.conv.weight.tensor.detach()
    expected = expected * (weight[0, 0, 0, 0] / expected[0, 0, 0, 0])
    torch.testing.assert_close(weight[0], expected[0])
    if encoder == "unrolled":
        return
    codes, field = sae.eval().encode(x), sae._field(x).detach()
    written = sae.concept_decoder.contract(codes.values, codes.selection).detach()
    assert float((written * (field - written)).sum()) == pytest.approx(0, abs=1e-9 * float(field.square().sum()))
    sae.initialize_from(torch.zeros(2, 3, 8, 9).double())
    assert all(parameter.isfinite().all() for parameter in sae.parameters())


def test_initialize_from_leaves_factorised_kernels_random() -> None:
    torch.manual_seed(1)
    sae: Any = SAEFNO(3, 8, (5, 4), skip=None, factorization="tucker", rank=0.5)
    before = copy.deepcopy(sae.state_dict())
    sae.initialize_from(torch.randn(2, 3, 8, 9))
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_initialize_from_on_device(device: torch.device) -> None:
    for skip in ("linear", None):
        sae = make(m=3, p=8, skip=skip).to(device)
        sae.initialize_from(torch.randn(2, 3, 8, 9, device=device), torch.Generator().manual_seed(0))


def test_dead_reconstruction_reaches_dead_concepts() -> None:
    """Also wholly negative ones get a gradient in encoder and decoder; living ones get none."""
    sae, x = make().double(), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        sae.concept_encoder.conv.bias[5] = -50.0
    dead = torch.zeros(8, dtype=torch.bool)
    assert sae(x).dead_reconstruction is None
    assert not sae(x, dead=dead).dead_reconstruction.any()
    dead[[2, 5]] = True
    written = sae(x, dead=dead, dead_k=3).dead_reconstruction
    pre_codes = sae.concept_encoder.dense_forward(sae.normalize(x))
    codes = torch.nn.functional.leaky_relu(pre_codes, 0.01) * dead.view(-1, 1, 1)
    expected = (sae.concept_decoder.dense_forward(codes) - sae.concept_decoder.conv.bias) * sae.scale
    assert_equal("written", written, expected)
    (written - x).square().sum().backward()
    rows = sae.concept_encoder.skip.conv.weight.grad.abs().flatten(1).sum(1)
    columns = sae.concept_decoder.skip.conv.weight.grad.abs().sum((0, 2))
    assert ((rows > 0) == dead).all()
    assert ((columns > 0) == dead).all()


def test_dead_concepts_are_ranked_by_energy_before_rectification() -> None:
    """A wholly negative concept, if it responds strongly, is revived first."""
    sae, x = make().double(), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        sae.concept_encoder.conv.bias[5] = -50.0
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[2, 5]] = True
    pre_codes = sae.concept_encoder.dense_forward(sae.normalize(x))
    codes = torch.nn.functional.leaky_relu(pre_codes, 0.01) * dead.view(-1, 1, 1)
    strongest = sae(x, dead=dead, dead_k=1).dead_reconstruction
    codes = codes.clone()
    codes[:, 2] = 0
    expected = (sae.concept_decoder.dense_forward(codes) - sae.concept_decoder.conv.bias) * sae.scale
    assert_equal("the strongest by energy", strongest, expected)


def test_codes_never_exist_for_concepts_that_are_off() -> None:
    """No tensor in the forward pass is as large as (batch, p, *grid)."""
    sae, x = make((5, 5), p=256, domain_rule=LocalTopK(2)), torch.randn(2, 3, 32, 32)
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


def test_on_device(device: torch.device) -> None:
    for rule in CONCEPT_RULES:
        sae, x = (
            make(concept_rule=rule, domain_rule=LocalTopK(2)).double().eval(),
            torch.randn(2, 3, 8, 9, dtype=torch.float64),
        )
        expected = sae(x)
        moved = copy.deepcopy(sae).to(device)
        out = moved(x.to(device))
        assert out.reconstruction.device.type == device.type
        assert_equal("reconstruction", out.reconstruction.cpu(), expected.reconstruction)
        assert_equal("back", moved.cpu()(x).reconstruction, expected.reconstruction)
        check_oracle(copy.deepcopy(sae).to(device).train(), x.to(device), f"on {device}", 0)


def test_frequencies_outside_the_modes_enter_through_the_pointwise_part() -> None:
    """A wave above the kept modes: no code without the skip, P x with it."""
    s = torch.arange(16, dtype=torch.float64) / 16
    x = torch.cos(2 * math.pi * 6 * s)[None, None].expand(1, 3, 16).contiguous()
    for skip in ("linear", None):
        sae = make(5, skip=skip, domain_rule="Identity", concept_rule=TopK(8)).double().eval()
        sae.fit_normalization(torch.zeros(3), 1.0)
        with torch.no_grad():
            sae.concept_encoder.conv.bias.zero_()
        out = sae.dense_forward(x)
        pointwise = sae.concept_encoder.skip_rows(slice(None)) if skip else torch.zeros(8, 3, dtype=torch.float64)
        expected = torch.einsum("pm,bms->bps", pointwise, x)
        assert_equal("pre-codes", sae.concept_encoder.dense_forward(x), expected, scale=1.0)
        assert_equal("scores", sae(x).scores, out.scores, scale=1.0)


@pytest.mark.parametrize("factorization", [None, "tucker"])
@pytest.mark.parametrize("selection", ["energy", "two_stage"])
@pytest.mark.parametrize("domain_rule", [Rectify(), SoftLocalTopK(2)], ids=repr)
def test_a_training_step_does_not_wait_for_the_device(domain_rule: Any, selection: str, factorization: str | None) -> None:
    """No operator of the pass gives the host a value of a tensor, or a shape that depends on one. On a CPU the field is
    looked at for NaN, once."""
    waits = {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::item",
        "aten::unique_dim",
        "aten::_unique2",
        "aten::is_nonzero",
    }
    sae = make(concept_rule=TopK(3), domain_rule=domain_rule, selection=selection, factorization=factorization, rank=0.5)
    x = torch.randn(2, 3, 8, 9)
    sae.train()(x)  # constants of the grid are made
    found: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(function.name())
            return function(*args, **(kwargs or {}))

    with Watch(), RowGradients():
        sae(x).reconstruction.square().sum().backward()
    assert [name for name in found if name in waits] == ["aten::_local_scalar_dense"]
