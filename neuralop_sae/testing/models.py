"""The contract of a sparse autoencoder."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import SAE, SAEOutput, load
from .accuracy import assert_equal, require, require_same_state


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
    require_same_state(before, model.state_dict(), "eval mode changes no state")
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
