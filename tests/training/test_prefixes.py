"""Nested prefixes of the dictionary: each reconstructs what its codes alone decode to, and training uses all of them."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from neuralop import H1Loss
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.layers import Selection
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.training.losses import per_field, unexplained_variance

CONFIG = ns.TrainingConfig(n_epochs=12, batch_size=8, learning_rate=1e-2)
TOP, LOCAL = {"name": "TopK", "k": 4}, {"name": "LocalTopK", "k": 2}


def fields(n: int) -> Tensor:
    """Three patterns mixed into four channels, ``(n, 4, 12, 12)``."""
    coefficients = torch.randn(n, 3, 5, 3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
    patterns = torch.relu(ns.FourierBasis((5, 5)).synthesis(coefficients, (12, 12)))
    return torch.einsum("ci,bi...->bc...", torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), patterns)


def four_channels(**kwargs: Any) -> ns.SAE:
    torch.manual_seed(0)
    return ns.SAEFNO(4, 12, (5, 5), domain_rule=ns.SoftLocalTopK(2), **kwargs)


class Unknown(nn.Conv2d):
    """A convolution of which nothing is known."""

    def __init__(self, in_channels: int, out_channels: int, n_modes: tuple[int, ...]) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode="circular")


def fno(**kwargs: Any) -> ns.SAE:
    return ns.SAEFNO(3, 12, (5, 5), **{"concept_rule": TOP, "domain_rule": LOCAL, **kwargs})


MODELS: dict[str, Any] = {
    "All": lambda: fno(concept_rule="All"),
    "TopK": fno,
    "BatchTopK": lambda: fno(concept_rule={"name": "BatchTopK", "k": 4}),
    "JumpReLU": lambda: fno(concept_rule={"name": "JumpReLU", "threshold": 0.4}, domain_rule="Rectify"),
    "no skip": lambda: fno(skip=None),
    "code grid": lambda: fno(code_grid=(10, 10)),
    "trunks": lambda: fno(encoder="fno_block", decoder="fno_block"),
    "unrolled": lambda: fno(encoder="unrolled", n_iterations=2),
    "opaque": lambda: fno(conv_module=Unknown),
    "tucker": lambda: ns.SAETFNO(3, 12, (5, 5), concept_rule=TOP, rank=(3, 4, 3, 3)),
    "cp": lambda: ns.SAETFNO(3, 12, (5, 5), concept_rule=TOP, factorization="cp", rank=5),
    "tt": lambda: ns.SAETFNO(3, 12, (5, 5), concept_rule=TOP, factorization="tt", rank=(1, 3, 3, 3, 1)),
    "sphere": lambda: ns.SAESFNO(3, 12, (4, 8), concept_rule=TOP, domain_rule=LOCAL),
    "cnn": lambda: ns.SAECNN(3, 12, (3, 3), concept_rule="All", domain_rule=LOCAL),
    "pointwise": lambda: ns.SAEPointwise(3, 12, k=2),
    "mlp": lambda: ns.SAEMLP(3, 12, (8, 12), k=4),
    "lifted": lambda: ns.Lifted(fno(), channels=5),
}


def prepared(name: str) -> tuple[ns.SAE, Tensor]:
    sae, x = MODELS[name]().double(), torch.randn(3, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    sae.fit_normalization(torch.randn(3), 1.7)
    return sae.train(), x


def all_gradients(sae: ns.SAE, rows: RowGradients) -> dict[str, Tensor]:
    """Gradients of all parameters, those that came by row too."""
    orders = {parameter: order for parameter, order, _ in rows.parts()}
    found = {name: parameter.grad for name, parameter in sae.named_parameters() if parameter.grad is not None}
    names = {parameter: name for name, parameter in sae.named_parameters()}
    for part in rows.sums():
        whole = torch.zeros_like(part.parameter)
        whole.permute(orders[part.parameter])[part.index] = part.values
        found[names[part.parameter]] = whole + found.get(names[part.parameter], 0)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_each_prefix_is_what_its_codes_decode_to_with_the_same_gradients(name: str) -> None:
    sae, x = prepared(name)
    other = copy.deepcopy(sae)
    *_, last = on = copy.deepcopy(sae)(x).codes.concept.unique().tolist()
    prefixes = sorted({1, on[1], last})  # maybe nothing, a part, and a larger one of what is on
    with RowGradients() as rows:
        out = sae(x, prefixes=prefixes)
        sum(
            (i + 1) * unexplained_variance(x, each, sae.scale, sae.basis)
            for i, each in enumerate((*out.prefix_reconstructions, out.reconstruction))
        ).backward()
    whole = other(x)
    codes = whole.codes
    assert torch.equal(out.codes.concept, codes.concept)
    assert 0 < (codes.concept < on[1]).sum() < (codes.concept < last).sum() < len(codes)
    expected = [other.decode(codes.keep(codes.concept < n), x.shape[2:]) for n in prefixes]
    sum(
        (i + 1) * unexplained_variance(x, each, other.scale, other.basis)
        for i, each in enumerate((*expected, whole.reconstruction))
    ).backward()
    for n, found, each in zip(prefixes, out.prefix_reconstructions, expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-10, atol=1e-10, msg=f"prefix {n}")
    torch.testing.assert_close(out.reconstruction, whole.reconstruction, rtol=1e-10, atol=1e-10)
    gradients = all_gradients(sae, rows)
    for parameter_name, parameter in other.named_parameters():
        reference = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = gradients.get(parameter_name, torch.zeros_like(parameter))
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10, msg=parameter_name)


def test_a_selection_is_cut_by_parts_of_the_dictionary() -> None:
    mask = torch.rand(4, 10) < 0.5
    mask[2] = False
    parts = Selection.from_mask(mask).by_part((0, 3, 3, 8))
    bounds = [0, 0, 3, 3, 8, 10]
    expected = torch.zeros(4, 5, 10, dtype=torch.bool)
    for part, (first, last) in enumerate(pairwise(bounds)):
        expected[:, part, first:last] = mask[:, first:last]
    assert torch.equal(parts.mask(), expected.flatten(0, 1))
    assert torch.equal(parts.sample, parts.sample.sort().values)
    assert torch.equal(parts.concept, Selection.from_mask(mask).concept)


@pytest.mark.parametrize("loss", [None, H1Loss(d=2)])
def test_training_minimises_the_mean_of_the_losses_of_all_prefixes(loss: Any) -> None:
    acts, sae = fields(8).double(), four_channels(concept_rule=ns.TopK(4)).double()
    config = CONFIG.model_copy(update={"n_epochs": 1, "log_every": 1, "prefixes": (2, 7)})
    start = copy.deepcopy(sae)
    (row,) = ns.train(sae, acts, config, loss=loss, progress=False).rows
    ns.train(start, acts, config.model_copy(update={"learning_rate": 1e-300}), progress=False)  # initialised, not moved
    start.train()
    with torch.no_grad():
        codes = start(acts).codes
        decoded = [start.decode(codes.keep(codes.concept < n), acts.shape[2:]) for n in (2, 7, 12)]
    value = per_field(loss, acts) if loss else lambda p, t: unexplained_variance(t, p, start.scale, start.basis)
    assert row["loss"] == pytest.approx(float(torch.stack([value(field, acts) for field in decoded]).mean()), rel=1e-6)
    unexplained = float(unexplained_variance(acts, decoded[-1], start.scale, start.basis))
    assert row["fve"] == pytest.approx(1 - unexplained, rel=1e-6)


def test_prefixes_explain_more_than_those_of_a_plain_dictionary() -> None:
    acts, explained = fields(24), {}
    for prefixes in ((), (2, 5)):
        sae = four_channels()
        ns.train(sae, acts, CONFIG.model_copy(update={"prefixes": prefixes}), progress=False)
        with torch.no_grad():
            out = sae(acts, prefixes=(2, 5))
        decoded = (*out.prefix_reconstructions, out.reconstruction)
        explained[prefixes] = [1 - float(unexplained_variance(acts, each, sae.scale, sae.basis)) for each in decoded]
    plain, nested = explained[()], explained[2, 5]
    assert nested[0] > plain[0] + 0.1
    assert nested[1] > plain[1] + 0.05
    assert nested[0] < nested[1] < nested[2]


@pytest.mark.parametrize("prefixes", [(4, 4), (7, 3), (0, 3), (3, 12), (-1,)])
def test_prefixes_that_are_none_are_refused_before_anything_is_read(prefixes: tuple[int, ...]) -> None:
    class Unread:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: Any) -> Tensor:
            raise AssertionError("read")

    with pytest.raises(ValueError, match=r"increasing sizes from 1 to 11, .* n_concepts=12 .* got \("):
        ns.train(four_channels(), Unread(), ns.TrainingConfig(prefixes=prefixes), progress=False)
    with pytest.raises(ValueError, match="increasing sizes"):
        ns.SAEPointwise(4, 12)(fields(2), prefixes=prefixes)
