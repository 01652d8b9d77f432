"""Contracts that every basis, rule, concept layer and model passes, also those registered from outside this package.

Each ``check_*`` raises AssertionError that names the property which failed and by how much. Call them from a test::

    def test_my_basis():
        check_basis(CosineBasis((8, 8)))
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers.basis import SpectralBasis
from .layers.concepts import ConceptDecoder, ConceptEncoder, Spectrum
from .layers.selection import Selection
from .layers.sparsity import ConceptRule, DomainRule, Rule, build_rule, concept_rules, domain_rules
from .models.base import SAE, SAEOutput, load

#: Largest relative error of an identity, per real dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def relative_error(actual: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """``|actual - expected| / max(|expected|, scale)`` in L2 norm, NaN counted as infinite; zero for two zeros."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    difference = float((actual.detach() - expected.detach()).norm())
    size = max(float(expected.detach().norm()), scale)
    error = difference / size if size else (0.0 if difference == 0 else math.inf)
    return math.inf if math.isnan(error) else error


def assert_equal(what: str, actual: Tensor, expected: Tensor, *, scale: float = 0.0, factor: float = 1.0) -> None:
    """AssertionError unless the relative error is within the tolerance of the dtype (times `factor`)."""
    real = expected.dtype.to_real() if expected.is_complex() else expected.dtype
    allowed = factor * TOLERANCE.get(real, 0.0)
    try:
        error = relative_error(actual, expected, scale)
    except AssertionError as mismatch:
        raise AssertionError(f"{what}: {mismatch}") from None
    require(actual.dtype == expected.dtype, what, f"dtype {actual.dtype} instead of {expected.dtype}")
    require(error <= allowed, what, f"relative error {error:.1e}, allowed {allowed:.0e}")


def require(condition: object, what: str, detail: str = "does not hold") -> None:
    """AssertionError with ``what: detail`` unless the condition holds."""
    if not condition:
        raise AssertionError(f"{what}: {detail}")


def check_basis(
    basis: SpectralBasis | Callable[[], SpectralBasis], shapes: Sequence[Sequence[int]] | None = None, *, seed: int = 0
) -> None:
    """The contract of a spectral basis.

    On every grid: adjoint relation, closed form of the Gram operator, energy = mean square of the synthesis,
    quadrature that sums to one, zeros for modes that the grid does not hold, resampling of constants, gradients. On the
    grids that resolve all modes also: coefficients equal to those of the continuum (hence on any two grids), round
    trip on the span, resampling exact.

    Parameters
    ----------
    basis : SpectralBasis or callable
        The basis, or what makes one.
    shapes : sequence of grids, optional
        By default three that a basis of Fourier type resolves; at least two must resolve all modes.
    seed : int
        Of the random fields.

    Raises
    ------
    AssertionError
        Naming the property that failed, the grid and the error.

    Examples
    --------
    >>> from neuralop_sae.layers import FourierBasis
    >>> check_basis(FourierBasis((4, 5)), shapes=[(9, 8), (6, 7), (3, 4)])
    """
    basis = basis if isinstance(basis, SpectralBasis) else basis()
    sizes = basis.mode_shape
    grids = [tuple(g) for g in shapes] if shapes else [tuple(2 * s + extra for s in sizes) for extra in (1, 2, 5)]
    generator = torch.Generator().manual_seed(seed)
    for dtype in TOLERANCE:
        coefficients = _random_coefficients(basis, dtype, generator)
        for grid in grids:
            _check_on_grid(basis, grid, coefficients, torch.randn(2, *grid, dtype=dtype, generator=generator))
        _check_across_grids(basis, grids, coefficients)
    again = type(basis)(**json.loads(json.dumps(basis.config())))
    require(again.mode_shape == sizes and again.config() == basis.config(), "basis config", "does not make the basis again")
    _check_basis_gradients(basis, min(grids, key=lambda grid: torch.Size(grid).numel()), generator)


def _random_coefficients(basis: SpectralBasis, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    pair = torch.randn(2, *basis.mode_shape, 2, dtype=dtype, generator=generator)
    return torch.view_as_complex(pair)


def _check_on_grid(basis: SpectralBasis, grid: tuple[int, ...], c: Tensor, f: Tensor) -> None:
    """What holds on any grid, for random coefficients and a random field that is not in the span."""
    on = f"on the grid {grid}"
    field, analysed, weights = basis.synthesis(c, grid), basis.analysis(f), basis.weights(grid, like=f)
    inner = basis.mean_square(f + field) - basis.mean_square(f) - basis.mean_square(field)
    spectral = 2 * (weights * (analysed.conj() * c).real).flatten(1).sum(1)
    scale = float((basis.mean_square(f) * basis.mean_square(field)).sqrt().norm())
    assert_equal(f"adjoint of analysis and synthesis {on}", inner, spectral, scale=scale)
    assert_equal(f"gram = analysis(synthesis) {on}", basis.gram(c, grid), basis.analysis(field), scale=float(c.norm()) / 10)
    assert_equal(f"energy = mean square of synthesis {on}", basis.energy(c, grid), basis.mean_square(field))
    total = basis.quadrature(grid, like=f).expand(grid).sum()
    assert_equal(f"quadrature sums to one {on}", total, torch.ones_like(total))
    require(weights.shape == basis.mode_shape and (weights >= 0).all(), f"weights {on}", "shape or sign")
    require(not analysed[:, weights == 0].any(), f"modes that are not held are zero {on}")
    require(torch.equal(basis.resample(f, grid), f), f"resample to the same grid is the identity {on}")
    larger = tuple(size + 3 for size in grid)
    constant = torch.full_like(f, 1.5)
    assert_equal(f"resample keeps constants {on}", basis.resample(constant, larger), f.new_full((2, *larger), 1.5))


def _check_across_grids(basis: SpectralBasis, grids: Sequence[tuple[int, ...]], c: Tensor) -> None:
    """What holds on the grids that resolve all modes, for coefficients that the Gram operator keeps."""
    resolving = [g for g in grids if relative_error(basis.gram(c, g), basis.gram(c)) < 1e-6 and _same_weights(basis, g)]
    require(len(resolving) > 1, "shapes", f"two grids that resolve all modes are needed, got {resolving} of {list(grids)}")
    for _ in range(60):  # the powers of a Gram operator converge to the projection on what it keeps
        c = basis.gram(c)
    fields = {grid: basis.synthesis(c, grid) for grid in resolving}
    for grid, field in fields.items():
        assert_equal(f"coefficients are those of the continuum, grid {grid}", basis.analysis(field), c)
        assert_equal(f"round trip on the span, grid {grid}", basis.synthesis(basis.analysis(field), grid), field)
        assert_equal(f"Parseval on the continuum, grid {grid}", basis.energy(c), basis.mean_square(field))
        for other, expected in fields.items():
            assert_equal(f"resample {grid} -> {other}", basis.resample(field, other), expected)


def _same_weights(basis: SpectralBasis, grid: tuple[int, ...]) -> bool:
    like = torch.zeros(())
    return torch.equal(basis.weights(grid, like=like), basis.weights(like=like))


def _check_basis_gradients(basis: SpectralBasis, grid: tuple[int, ...], generator: torch.Generator) -> None:
    field = torch.randn(*grid, dtype=torch.float64, generator=generator, requires_grad=True)
    coefficients = _random_coefficients(basis, torch.float64, generator)[0].requires_grad_()
    for what, function, argument in (
        ("analysis", basis.analysis, field),
        ("synthesis", lambda c: basis.synthesis(c, grid), coefficients),
        ("energy", lambda c: basis.energy(c, grid), coefficients),
    ):
        try:
            torch.autograd.gradcheck(function, (argument,), fast_mode=True)
        except RuntimeError as error:
            raise AssertionError(f"gradient of {what} on the grid {grid}: {error}") from error


def check_rule(rule: Rule, *, n_concepts: int = 12, seed: int = 0) -> None:
    """The contract of a concept rule or a domain rule.

    Both: the config is plain data and makes the rule again; a model's copy is its own; eval mode changes no state and
    treats a sample the same whatever else is in the batch; the state dict restores the rule. A concept rule: a score of
    zero is never on; what is on was a candidate. A domain rule: rows are activated as in the dense tensor; a code is no
    larger than its pre-code (candidates rely on that bound); competition ignores absent concepts.

    Parameters
    ----------
    rule : ConceptRule or DomainRule
        As a user makes it, not bound to a model; registered.
    n_concepts : int
        Size of the dictionary to bind it to.
    seed : int
        Of the random scores and codes.

    Raises
    ------
    AssertionError
        Naming the property that failed.

    Examples
    --------
    >>> from neuralop_sae.layers import LocalTopK, TopK
    >>> check_rule(TopK(4))
    >>> check_rule(LocalTopK(2))
    """
    generator = torch.Generator().manual_seed(seed)
    require(isinstance(rule, ConceptRule | DomainRule), "rule", f"neither a concept nor a domain rule: {rule!r}")
    built = _build(rule, n_concepts)
    _check_config(rule, built)
    if isinstance(rule, ConceptRule):
        _check_concept_rule(built, n_concepts, generator)
    else:
        _check_domain_rule(built, n_concepts, generator)


def _build(rule: Any, n_concepts: int, config: Any = None) -> Any:
    """From a config, by default the rule itself, a rule of the same kind."""
    registry: Any = concept_rules if isinstance(rule, ConceptRule) else domain_rules
    return build_rule(config or rule, registry, n_concepts)


def _check_config(rule: Rule, built: Rule) -> None:
    """`built` is a copy of its own of `rule`, and its config makes it again."""
    require(built is not rule, "build_rule", "the model shares its rule with the caller")
    config = rule.config()
    signature = inspect.signature(type(rule)).parameters.values()
    arguments = {p.name for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    require(set(config) - {"name"} == arguments, "config", f"{config} does not hold the arguments {sorted(arguments)}")
    again = _build(rule, 3000, json.loads(json.dumps(config)))
    require(type(again) is type(rule) and again.config() == config, "config", f"{config} does not make the rule again")
    copied = copy.deepcopy(built)
    for tensor in copied.state_dict().values():
        tensor.fill_(1)
    shared = {t.data_ptr() for t in built.state_dict().values()} & {t.data_ptr() for t in copied.state_dict().values()}
    require(not shared, "deepcopy", "shares tensors with the original")


def _scores(n_concepts: int, generator: torch.Generator) -> Tensor:
    """Scores (6, p), a quarter of them zero."""
    scores = torch.rand(6, n_concepts, generator=generator)
    return scores * (torch.rand(6, n_concepts, generator=generator) > 0.25)


@torch.no_grad()
def _check_concept_rule(rule: ConceptRule, p: int, generator: torch.Generator) -> None:
    for training in (True, False):
        rule.train(training)
        mode = "in training mode" if training else "in eval mode"
        for _ in range(3):
            scores = _scores(p, generator)
            candidates, on = rule.candidates(scores, scores, 2), rule.select(scores)
            require(on.shape == scores.shape and on.dtype == torch.bool, f"select {mode}", "is a boolean (B, p)")
            require(not on[scores == 0].any(), f"a score of zero is never on {mode}")
            require(not (on & ~candidates).any(), f"a concept that is on was a candidate {mode}")
            idle = not rule.takes_all or torch.equal(on, scores > 0)
            require(idle, f"a rule that takes all has every positive score on {mode}")
        require(not rule.select(torch.zeros(2, p)).any(), f"a score of zero is never on {mode}")
    scores = _scores(p, generator)
    _check_frozen(rule, lambda some: rule.select(scores[some]), len(scores))
    rows = Selection.from_mask(rule.select(scores))
    gates = rule.gate(scores[rows.sample, rows.concept], rows.concept)
    require(gates is None or bool((gates == 1).all()), "gates in eval mode", f"are one, got {gates}")
    _check_state(rule, lambda other: other.select(scores), p)


@torch.no_grad()
def _check_domain_rule(rule: DomainRule, p: int, generator: torch.Generator) -> None:
    values = torch.randn(6 * p, 9, generator=generator)
    concept = torch.arange(p).repeat(6)
    quadrature = torch.full((1,), 1 / 9)
    for training in (True, False):
        rule.train(training)
        mode = "in training mode" if training else "in eval mode"
        rows = (torch.rand(6 * p, generator=generator) > 0.4).nonzero()[:, 0]
        dense = rule.activate(values, concept, quadrature)
        alone = rule.activate(values[rows], concept[rows], quadrature)
        assert_equal(f"rows are activated as in the dense tensor {mode}", alone, dense[rows])
        excess = float((dense.square().mean(1) - values.square().mean(1)).max())
        require(excess < 1e-6, f"a code is no larger than its pre-code {mode}", f"mean square larger by {excess:.1e}")
        if training:
            rule.observe(values, concept, quadrature)
    moments = values.mean(1).reshape(6, p), values.square().mean(1).reshape(6, p)
    estimate = rule.estimate(*moments)
    require(estimate.shape == (6, p) and (estimate >= 0).all(), "estimate", "is a non-negative (B, p)")
    if not rule.rectifies:
        assert_equal("estimate of a rule that does not rectify", estimate, dense.square().mean(1).reshape(6, p))
    slots = values.reshape(6, p, 9)
    _check_competition(rule, slots.abs())

    def codes(some: Tensor) -> Tensor:
        rows = slots[some].flatten(0, 1)
        return rule.compete(rule.activate(rows, concept[: len(rows)], quadrature).reshape(-1, p, 9))

    _check_frozen(rule, codes, len(slots))
    _check_state(rule, lambda other: other.activate(values, concept, quadrature), p)


def _check_competition(rule: DomainRule, slots: Tensor) -> None:
    what, p = "competition ignores absent concepts", slots.shape[1]
    padded = rule.compete(torch.cat([slots, torch.zeros_like(slots)], 1))
    assert_equal(what, padded[:, :p], rule.compete(slots))
    require(not padded[:, p:].any(), what, "an absent concept has a code")


def _check_frozen(rule: Rule, apply: Callable[[Tensor], Tensor], n: int) -> None:
    """In eval mode no state changes, and a sample's result is its own."""
    before = copy.deepcopy(rule.state_dict())
    together = apply(torch.arange(n))
    one_by_one = torch.cat([apply(torch.tensor([i])) for i in range(n)])
    differing = int((together != one_by_one).flatten(1).any(1).sum())
    require(not differing, "eval mode is a function of the sample alone", f"{differing} of {n} samples differ")
    _require_same_state(before, rule.state_dict(), "eval mode changes no state")


def _require_same_state(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    tensors = [name for name, value in before.items() if isinstance(value, Tensor)]
    changed = [name for name in tensors if not torch.equal(before[name], after[name])]
    require(before.keys() == after.keys() and not changed, what, f"changed: {changed}")


def _check_state(rule: Rule, apply: Callable[[Any], Tensor], p: int) -> None:
    fresh = _build(rule, p, rule.config()).eval()
    fresh.load_state_dict(rule.state_dict())
    require(torch.equal(apply(fresh), apply(rule)), "the state dict restores the rule", "results differ")


def check_concept_layer(
    encoder: ConceptEncoder, decoder: ConceptDecoder, shapes: Sequence[Sequence[int]] | None = None, *, seed: int = 0
) -> None:
    """The contract of a pair of concept layers, against their ``dense_forward``.

    Energies are the mean and mean square of the dense pre-codes, ``gather`` gives rows of them, ``contract`` writes what
    the dense decoder writes for the scattered codes, kernel norms are the norms of the atoms, on every grid.

    Parameters
    ----------
    encoder, decoder
        The layers, of one dictionary.
    shapes : sequence of grids, optional
        By default an odd and an even one. All must resolve the modes.
    seed : int
        Of the random fields.

    Raises
    ------
    AssertionError
        Naming the property that failed, the grid and the error.

    Examples
    --------
    >>> from neuralop_sae.layers import ConceptDecoder, ConceptEncoder
    >>> check_concept_layer(ConceptEncoder(3, 8, (5, 4)), ConceptDecoder(3, 8, (5, 4)))
    """
    generator = torch.Generator().manual_seed(seed)
    require(encoder.n_concepts == decoder.n_concepts, "n_concepts", f"{encoder.n_concepts} and {decoder.n_concepts}")
    sizes = encoder.basis.mode_shape
    for grid in shapes or [tuple(2 * size + extra for size in sizes) for extra in (1, 2)]:
        _check_encoder(encoder, tuple(grid), generator)
        _check_decoder(decoder, tuple(grid), generator)


def _random_selection(n_samples: int, n_concepts: int, generator: torch.Generator) -> Selection:
    """Varying numbers of concepts per sample; none at all in the last."""
    mask = torch.rand(n_samples, n_concepts, generator=generator) < 0.4
    mask[-1] = False
    return Selection.from_mask(mask)


def _check_encoder(encoder: ConceptEncoder, grid: tuple[int, ...], generator: torch.Generator) -> None:
    dtype = next(encoder.parameters()).dtype.to_real()
    field = torch.randn(3, encoder.in_channels, *grid, dtype=dtype, generator=generator) + 0.3
    spectrum, dense = Spectrum.of(field, encoder.basis), encoder.dense_forward(field).detach()
    energies, on = encoder.energies(spectrum), f"on the grid {grid}"
    assert_equal(f"energies = mean square of the dense pre-codes {on}", energies.mean_square, encoder.basis.mean_square(dense))
    mean = (dense * encoder.basis.quadrature(grid, like=dense)).flatten(2).sum(-1)
    assert_equal(f"energies: mean of the dense pre-codes {on}", energies.mean, mean, scale=float(dense.norm()) / 10)
    selection = _random_selection(len(field), encoder.n_concepts, generator)
    rows = dense[selection.sample, selection.concept]
    assert_equal(f"gather = rows of dense_forward {on}", encoder.gather(spectrum, selection), rows)
    nothing = Selection.from_mask(torch.zeros(3, encoder.n_concepts, dtype=torch.bool))
    require(encoder.gather(spectrum, nothing).shape == (0, *grid), f"gather of an empty selection {on}", "has rows")


def _check_decoder(decoder: ConceptDecoder, grid: tuple[int, ...], generator: torch.Generator) -> None:
    dtype, on = next(decoder.parameters()).dtype.to_real(), f"on the grid {grid}"
    selection = _random_selection(3, decoder.n_concepts, generator)
    codes = torch.randn(len(selection), *grid, dtype=dtype, generator=generator)
    scattered = codes.new_zeros(3, decoder.n_concepts, *grid)
    scattered[selection.sample, selection.concept] = codes
    dense = decoder.dense_forward(scattered).detach()
    assert_equal(f"forward = dense_forward of the scattered codes {on}", decoder(codes, selection), dense)
    bias = decoder.dense_forward(torch.zeros_like(scattered))
    assert_equal(f"contract = forward without the bias {on}", decoder.contract(codes, selection), dense - bias)
    atoms = decoder.atoms(torch.arange(decoder.n_concepts), grid)
    norms = decoder.basis.mean_square(atoms).sum(1).sqrt()
    assert_equal(f"kernel norms = norms of the atoms {on}", decoder.kernel_norms(), norms)


def check_model(model: SAE, x: Tensor, *, seed: int = 0) -> None:
    """The contract of a sparse autoencoder; the model itself is left as it was.

    In training and eval mode, in its own dtype and in float64, forward pass and gradients are those of the dense oracle.
    Eval mode changes no state and treats a sample the same whatever else is in the batch. ``encode`` then ``decode`` is
    ``forward``. Saved and loaded, copied, and nested in an nn.Sequential, it is the same model. Unknown constructor
    arguments are refused by name.

    Parameters
    ----------
    model : SAE
        Any state; a trained one tests more, if `x` is not the batch that set its running thresholds (a score that sits on
        a threshold falls on either side by round-off).
    x : Tensor
        ``(B, channels, *grid)``, at least two samples, of the model's dtype.
    seed : int
        Of the random cotangent.

    Raises
    ------
    AssertionError
        Naming the property that failed and the error.

    Examples
    --------
    >>> import torch
    >>> from neuralop_sae.models import SAEFNO
    >>> check_model(SAEFNO(3, 8, (5, 5), concept_rule="JumpReLU"), torch.randn(2, 3, 9, 8))
    """
    require(len(x) > 1, "x", "two samples or more are needed")
    for training in (True, False):
        mode = "in training mode" if training else "in eval mode"
        check_oracle(copy.deepcopy(model).train(training), x, mode, seed)
        doubled = copy.deepcopy(model).double().train(training)
        check_oracle(doubled, x.double(), f"{mode}, float64", seed)
    evaluated = copy.deepcopy(model).eval()
    _check_eval(evaluated, x)
    _check_copies(evaluated, x)
    kind: Any = type(model)
    try:
        kind(**evaluated.config(), no_such_argument=1)
    except TypeError as error:
        require("no_such_argument" in str(error), "unknown constructor arguments", f"are not named: {error}")
    else:
        raise AssertionError("unknown constructor arguments: are not refused")


def check_oracle(model: SAE, x: Tensor, mode: str = "", seed: int = 0) -> None:
    """Values and gradients of the sparse path are those of the dense path, in the mode and dtype that the model is in; part of
    :func:`check_model`. `mode` is for messages."""
    cotangent = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)).to(x.device)
    results = []
    for forward in (type(model).forward, type(model).dense_forward):
        copied, leaf = copy.deepcopy(model), x.detach().clone().requires_grad_()
        out = forward(copied, leaf)
        objective = (out.reconstruction * cotangent).sum() + (0 if out.gates is None else out.gates.sum())
        objective.backward()
        gradients = {name: p.grad for name, p in copied.named_parameters()}
        results.append((out, {"x": leaf.grad, **gradients}))
    (out, gradients), (expected, expected_gradients) = results
    _check_same_output(out, expected, f"sparse = dense {mode}")
    largest = max(float(g.norm()) for g in expected_gradients.values() if g is not None)
    require(torch.isfinite(torch.tensor(largest)), f"gradients {mode}", "are not finite")
    for name, reference in expected_gradients.items():
        reference, gradient = (model.mean.new_zeros(1) if g is None else g for g in (reference, gradients[name]))
        if gradient.shape != reference.shape:  # one path does not reach a parameter, the other gives it a zero
            gradient, reference = gradient.norm()[None], reference.norm()[None]
        assert_equal(f"gradient of {name}, sparse = dense {mode}", gradient, reference, scale=1e-3 * largest)


def _check_same_output(out: SAEOutput, expected: SAEOutput, what: str) -> None:
    same = torch.equal(out.codes.concept, expected.codes.concept) and torch.equal(out.codes.sample, expected.codes.sample)
    require(same, what, f"other concepts are on: {len(out.codes)} codes instead of {len(expected.codes)}")
    assert_equal(f"codes, {what}", out.codes.values, expected.codes.values)
    assert_equal(f"scores, {what}", out.scores, expected.scores)
    assert_equal(f"reconstruction, {what}", out.reconstruction, expected.reconstruction)


@torch.no_grad()
def _check_eval(model: SAE, x: Tensor) -> None:
    """Eval mode: a function of each sample alone; encode then decode is forward."""
    before, out = copy.deepcopy(model.state_dict()), model(x)
    one_by_one = torch.cat([model(sample[None]).reconstruction for sample in x])
    assert_equal("eval mode is a function of the sample alone", one_by_one, out.reconstruction)
    _require_same_state(before, model.state_dict(), "eval mode changes no state")
    codes = model.encode(x)
    decoded = model.decode(codes, x.shape[2:])
    assert_equal("decode(encode(x)) = forward(x)", decoded, out.reconstruction)
    scattered = torch.zeros_like(out.scores, dtype=torch.bool)
    scattered[codes.sample, codes.concept] = True
    require(not (scattered & (out.scores <= 0)).any(), "a score of zero is never on")


@torch.no_grad()
def _check_copies(model: SAE, x: Tensor) -> None:
    """The model saved and loaded, copied, and nested gives the same output, bit for bit."""
    expected = model(x).reconstruction
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded, named = load(folder, device=x.device), type(model).from_pretrained(folder, device=x.device)
    require(loaded.config() == model.config(), "save and load", f"config {loaded.config()} instead of {model.config()}")
    require(loaded.dtype == model.dtype, "save and load", f"dtype {loaded.dtype} instead of {model.dtype}")
    for what, other in (("load", loaded), ("from_pretrained", named), ("deepcopy", copy.deepcopy(model))):
        require(torch.equal(other(x).reconstruction, expected), what, "the output differs")
    nested, state = nn.Sequential(copy.deepcopy(model)), nn.Sequential(copy.deepcopy(model)).state_dict()
    for parameter in nested.parameters():
        parameter.add_(1)
    require(torch.equal(model(x).reconstruction, expected), "deepcopy", "shares tensors with the original")
    strange = [name for name, value in state.items() if not name.startswith("0.") or not isinstance(value, Tensor)]
    require(not strange, "nested state dict", f"holds {strange}, which break strict loading")
    nested.load_state_dict(state, strict=True)
    require(torch.equal(nested(x).reconstruction, expected), "nested in nn.Sequential", "the output differs after loading")
