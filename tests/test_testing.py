"""The contracts themselves: each breaks on a class that is wrong in one way, and names the property."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from neuralop_sae.layers import (
    BatchTopK,
    ConceptDecoder,
    ConceptEncoder,
    FourierBasis,
    LocalTopK,
    Rectify,
    Selection,
    TopFraction,
    TopK,
    bases,
)
from neuralop_sae.layers.basis import Pairing
from neuralop_sae.layers.moments import Energies
from neuralop_sae.layers.sparsity import concept_rules, domain_rules
from neuralop_sae.models import SAEFNO
from neuralop_sae.testing import assert_equal, check_basis, check_concept_layer, check_model, check_rule, relative_error


class ShiftedAnalysis(FourierBasis):
    def analysis(self, field: Tensor) -> Tensor:
        return super().analysis(field).roll(1, -1)


class Orthonormal(FourierBasis):
    """Coefficients that depend on the grid: norm="ortho" consistently everywhere, the default of many codes."""

    def analysis(self, field: Tensor) -> Tensor:
        return super().analysis(field) * torch.Size(field.shape[-self.n_dim :]).numel() ** 0.5

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        return super().synthesis(coefficients, shape) / torch.Size(shape).numel() ** 0.5

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        size = torch.Size(shape).numel() if shape is not None else 1
        return super().weights(shape, like=like) / size


class NaiveGram(FourierBasis):
    def pairing(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Pairing:
        _, mirrored, partner = super().pairing(shape, like=like)
        held = (self.weights(shape, like=like) > 0).to(like.dtype)
        return Pairing(held.flatten(), torch.zeros_like(mirrored), partner)


class NaiveWeights(FourierBasis):
    """Parseval without the factor two of the half spectrum."""

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        return super().weights(shape, like=like).clamp_max(1)


class PointCount(FourierBasis):
    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        return torch.ones_like(super().quadrature(shape, like=like))


class Single(FourierBasis):
    def analysis(self, field: Tensor) -> Tensor:
        return super().analysis(field.float())


class NearestResample(FourierBasis):
    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        if tuple(shape) == tuple(field.shape[-self.n_dim :]):
            return field
        return torch.nn.functional.interpolate(field[:, None], tuple(shape))[:, 0]


class NoGradient(FourierBasis):
    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        return super().synthesis(coefficients.conj().detach().conj() + 0 * coefficients, shape)


class RealCoefficients(FourierBasis):
    def analysis(self, field: Tensor) -> Tensor:
        return super().analysis(field).real


class Mask(FourierBasis):
    """Weights that only say which modes are held."""

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        return super().weights(shape, like=like) > 0


class DetachedNothing(FourierBasis):
    """An empty batch that a shard's backward pass would hang on."""

    def analysis(self, field: Tensor) -> Tensor:
        return super().analysis(field if len(field) else field.detach())


class KeepsTensor(FourierBasis):
    """Keeps a constant from its first call, whatever mode that was in."""

    def analysis(self, field: Tensor) -> Tensor:
        out = super().analysis(field)
        self.__dict__.setdefault("_scale", torch.full(self.mode_shape, 1.0, dtype=out.dtype))
        return out * self.__dict__["_scale"].to(out.dtype)


class HidesArgument(FourierBasis):
    def __init__(self, n_modes: Sequence[int], walls: bool = False) -> None:
        super().__init__(n_modes)


class NotPlain(FourierBasis):
    def __init__(self, n_modes: Sequence[int], length: Any = None) -> None:
        super().__init__(n_modes)
        self.length = torch.ones(2)


class BadConfig(FourierBasis):
    def config(self) -> dict[str, object]:
        return {"n_modes": [n + 1 for n in self.n_modes]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ShiftedAnalysis, "adjoint"),
        (Orthonormal, "coefficients are those of the continuum|two grids|gram"),
        (NaiveGram, "gram = analysis"),
        (NaiveWeights, "adjoint"),
        (PointCount, "quadrature sums to one|adjoint|mean square"),
        (Single, "dtype|relative error"),
        (NearestResample, "resample"),
        (NoGradient, "gradient of synthesis"),
        (BadConfig, "config"),
        (RealCoefficients, "^analysis on the grid .*: dtype torch.float32 instead of torch.complex64"),
        (Mask, "^weights on the grid .*: dtype torch.bool instead of torch.float32"),
        (DetachedNothing, "^analysis of an empty batch .* cut off"),
        (KeepsTensor, "^a backward pass after a call in inference mode"),
        (HidesArgument, "no attribute 'walls'; keep every constructor argument as an attribute"),
        (NotPlain, "^basis config: .* is not plain data"),
    ],
)
def test_check_basis_finds(kind: type[FourierBasis], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_basis(kind((5, 4)))


def test_check_basis_needs_two_grids_that_resolve_the_modes() -> None:
    with pytest.raises(AssertionError, match="two grids that resolve all modes are needed"):
        check_basis(FourierBasis((5, 5)), shapes=[(4, 4), (8, 8)])


class ZerosOn(TopK):
    """topk without a check for zero scores."""

    def select(self, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(self.k).indices, True)


class BatchInEval(TopK):
    """k * batch in eval mode too: what is on depends on the rest of the batch."""

    def select(self, scores: Tensor) -> Tensor:
        lowest = scores.flatten().topk(min(self.k * len(scores), scores.numel())).values[-1]
        return (scores >= lowest) & (scores > 0)

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return bound > 0


class LearnsInEval(BatchTopK):
    def select(self, scores: Tensor) -> Tensor:
        mask = super().select(scores)
        self._update(scores.max())
        return mask


class ForgetsThreshold(BatchTopK):
    """The threshold is no part of the state dict."""

    def __init__(self, k: int = 16, momentum: float = 0.01) -> None:
        super().__init__(k, momentum)
        self.register_buffer("threshold", torch.zeros(()), persistent=False)


class FewCandidates(TopK):
    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return self.select(estimate) & (estimate < 0.9)


class DropsArgument(TopK):
    arguments: ClassVar[tuple[str, ...]] = ()  # type: ignore[assignment]


class Amplifies(Rectify):
    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return 2 * torch.relu(values)


class SignLost(Rectify):
    """Negative pre-codes have codes, but are estimated as if they were rectified: they would be no candidates."""

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return values.abs()


class FloatMask(TopK):
    def select(self, scores: Tensor) -> Tensor:
        return super().select(scores).to(scores.dtype)


class TensorArgument(TopK):
    def __init__(self, k: int = 16) -> None:
        super().__init__(k)
        self.k = torch.tensor(k)  # type: ignore[assignment]


class NormalisesOverRows(Rectify):
    """A statistic over all rows: not the row's own."""

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return torch.relu(values - values.mean().abs())


class CountsAbsent(LocalTopK):
    """Competition that keeps the weakest: absent concepts, being zero, win."""

    def compete(self, slots: Tensor) -> Tensor:
        return slots * (slots <= slots.kthvalue(self.k, dim=1, keepdim=True).values)


class ObservesInEval(TopFraction):
    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        out = super().activate(values, concept, quadrature)
        self.thresholds += 0.01
        return out


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ZerosOn, (9,), "a score of zero is never on"),
        (BatchInEval, (3,), "function of the sample alone"),
        (LearnsInEval, (3,), "changes no state|function of the sample alone"),
        (ForgetsThreshold, (3,), "state dict restores"),
        (FewCandidates, (3,), "was a candidate"),
        (DropsArgument, (3,), "config|state dict"),
        (FloatMask, (3,), "select in training mode: torch.float32"),
        (TensorArgument, (3,), "config: .* is not plain data"),
        (SignLost, (), "estimate: is zero for pre-codes of constant -5"),
        (Amplifies, (), "no larger than its pre-code"),
        (NormalisesOverRows, (), "rows are activated as in the dense tensor"),
        (CountsAbsent, (2,), "ignores absent concepts"),
        (ObservesInEval, (0.3,), "changes no state|function of the sample alone|rows"),
    ],
)
def test_check_rule_finds(kind: Any, arguments: tuple[Any, ...], message: str) -> None:
    registry: Any = concept_rules if issubclass(kind, TopK) else domain_rules
    registry.register(kind.__name__)(kind)
    try:
        with pytest.raises(AssertionError, match=message):
            check_rule(kind(*arguments))
    finally:
        del registry._entries[kind.__name__.lower()]


def test_check_rule_passes_a_rule_registered_from_outside() -> None:
    @domain_rules.register("Abs")
    class Abs(SignLost):
        def estimate(self, mean: Tensor, mean_square: Tensor) -> Tensor:
            return mean_square

    try:
        check_rule(Abs())
    finally:
        del domain_rules._entries["abs"]


def test_check_rule_says_how_to_register() -> None:
    with pytest.raises(AssertionError, match=r"SignLost is no domain rule; .*@register_domain_rule\('SignLost'\)"):
        check_rule(SignLost())


class NaiveEnergies(ConceptEncoder):
    """Without the frequencies outside the modes."""

    def energies(self, spectrum: Any) -> Energies:
        skip, self.skip = self.skip, None
        try:
            return super().energies(spectrum)
        finally:
            self.skip = skip


class NoBias(ConceptEncoder):
    def gather(self, spectrum: Any, selection: Any) -> Tensor:
        return super().gather(spectrum, selection) - self.conv.bias.flatten()[selection.concept, None, None]


class TransposedRows(ConceptDecoder):
    """Writes the adjoint of its kernels."""

    @property
    def kernels(self) -> Any:
        kernels = super().kernels
        write = kernels.write
        kernels.write = lambda codes, selection: write(codes.conj().resolve_conj(), selection).conj()
        return kernels


class SkiplessNorms(ConceptDecoder):
    def kernel_norms(self) -> Tensor:
        return self.kernels.rows(slice(None)).abs().square().sum((1, 2)).sqrt()


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (NaiveEnergies, ConceptDecoder, "energies"),
        (NoBias, ConceptDecoder, "gather = rows"),
        (ConceptEncoder, TransposedRows, "forward = dense_forward"),
        (ConceptEncoder, SkiplessNorms, "kernel norms"),
    ],
)
def test_check_concept_layer_finds(encoder: Any, decoder: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_concept_layer(encoder(3, 6, (5, 4)), decoder(3, 6, (5, 4)))


def test_check_concept_layer_names_the_weight_and_the_bias() -> None:
    encoder, decoder = ConceptEncoder(3, 6, (5, 4)), ConceptDecoder(3, 6, (5, 4))
    decoder.conv.bias = torch.nn.Parameter(decoder.conv.bias.detach().flatten())
    with pytest.raises(AssertionError, match=r"^bias of SpectralConv: shape \(3,\) instead of \(3, 1, 1\)"):
        check_concept_layer(encoder, decoder)
    encoder.conv.weight = torch.nn.Parameter(torch.zeros(6, 3, 5, 3))
    with pytest.raises(AssertionError, match=r"^weight of SpectralConv: shape \(6, 3, 5, 3\) instead of \(3, 6, 5, 3\)"):
        check_concept_layer(encoder, decoder)


class Unselected(SAEFNO, name="test_unselected"):  # type: ignore[call-arg]
    """Turns on what is weakest."""

    def _rank(self, *args: Any) -> Any:
        _, scores = super()._rank(*args)
        return Selection.from_mask(self.concept_rule.select(1 / scores.clamp_min(1e-9))), scores


def as_sound(model: SAEFNO) -> SAEFNO:
    other = copy.deepcopy(model)
    other.__class__ = SAEFNO
    return other


class DetachedCodes(SAEFNO, name="test_detached"):  # type: ignore[call-arg]
    """A gradient that never reaches the encoder."""

    def _express(self, *args: Any) -> Any:
        values, gates = super()._express(*args)
        return values.detach() + 0 * values, gates


class RemembersInput(SAEFNO, name="test_remembers"):  # type: ignore[call-arg]
    """Batch normalisation in eval mode."""

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x) / x.std()


class UpstreamStateDict(SAEFNO, name="test_upstream"):  # type: ignore[call-arg]
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        state["_metadata"] = self._init_kwargs
        return state

    def save_pretrained(self, folder: Any) -> None:
        as_sound(self).save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> Any:
        return SAEFNO.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unselected, "other concepts are on|scores"),
        (DetachedCodes, "gradient of"),
        (RemembersInput, "function of the sample alone"),
        (UpstreamStateDict, "nested state dict: holds .*_metadata"),
    ],
)
def test_check_model_finds(kind: type[SAEFNO], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_model(kind(3, 8, (5, 4), concept_rule=TopK(2), domain_rule="Rectify"), torch.randn(3, 3, 9, 8))


def test_check_model_finds_an_argument_that_is_lost_on_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SAEFNO.config
    monkeypatch.setattr(SAEFNO, "config", lambda self: {k: v for k, v in whole(self).items() if k != "domain_rule"})
    sae = SAEFNO(3, 8, (5, 4), concept_rule=TopK(2), domain_rule="Identity")
    with pytest.raises(AssertionError, match="load: the output differs"):
        check_model(sae, torch.randn(3, 3, 9, 8))


def test_check_model_leaves_the_model_as_it_was() -> None:
    sae = SAEFNO(3, 8, (5, 4), concept_rule=BatchTopK(2), domain_rule=TopFraction(0.3))
    before = copy.deepcopy(sae.state_dict())
    check_model(sae, torch.randn(2, 3, 9, 8))
    assert sae.training
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())
    assert sae.dtype == torch.float32
    assert all(parameter.grad is None for parameter in sae.parameters())


def test_relative_error() -> None:
    a = torch.tensor([3.0, 4.0])
    assert relative_error(a, a) == 0
    assert relative_error(a * 1.5, a) == pytest.approx(0.5)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.full((2,), float("nan")), a) == float("inf")
    assert relative_error(a, torch.zeros(2)) == float("inf")
    assert relative_error(a, torch.zeros(2), scale=50) == pytest.approx(0.1)
    with pytest.raises(AssertionError, match=r"here: shape \(2,\) instead of \(3,\)"):
        assert_equal("here", a, torch.zeros(3))
    with pytest.raises(AssertionError, match=r"here: dtype torch.float64 instead of torch.float32"):
        assert_equal("here", a.double(), a)
    with pytest.raises(AssertionError, match=r"here: relative error 1.0e-01, allowed 1e-05"):
        assert_equal("here", a * 1.1, a)


def test_contracts_are_not_left_in_the_registries() -> None:
    assert set(bases.names()) >= {"fourier"}
    assert "zeroson" not in concept_rules
