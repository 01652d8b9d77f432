"""One step of Adam, where gradients of one parameter come whole and by row."""

from typing import Any

import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.training.distributed import Single
from neuralop_sae.training.losses import domain_penalty
from neuralop_sae.training.update import Update

MODELS: dict[str, Any] = {
    "spectral": lambda: ns.SAEFNO(2, 6, (5,), skip=None, domain_rule="Rectify"),
    "few spectral": lambda: ns.SAEFNO(2, 6, (5,), concept_rule=ns.TopK(2), domain_rule="Rectify"),
    "convolution": lambda: ns.SAECNN(2, 6, 3, domain_rule="Rectify"),
    "pointwise": lambda: ns.SAEPointwise(2, 6, k=2, n_dim=1),
    "flat": lambda: ns.SAEMLP(2, 6, (12,), k=2),
}


def loss_of(sae: ns.SAE, x: torch.Tensor) -> torch.Tensor:
    out = sae(x)
    norms = sae.kernel_norms(torch.arange(sae.n_concepts))
    return (x - out.reconstruction).square().mean() + domain_penalty(out.codes, norms)


@pytest.mark.parametrize("model", MODELS)
def test_a_parameter_used_whole_and_by_row_has_the_gradient_of_the_sum(model: str) -> None:
    """The gradients that autograd forms without rows, before Adam makes both alike."""
    torch.manual_seed(0)
    sae = MODELS[model]().double()
    x = torch.randn(4, 2, 12, dtype=torch.float64)
    expected = torch.autograd.grad(loss_of(sae, x), list(sae.parameters()), allow_unused=True)
    found = {parameter: torch.zeros_like(parameter) for parameter in sae.parameters()}
    update = Update(sae, Single(), gradient_clip=1e9)

    def look(by_row: list[Any]) -> torch.Tensor:
        found.update({parameter: parameter.grad for parameter in found if parameter.grad is not None})
        for part in by_row:
            assert part.parameter.grad is None, "two optimisers would step along the parts of one gradient"
            order = rows._parts[part.parameter][0]
            whole = torch.zeros_like(part.view).index_copy(0, part.index, part.values)
            found[part.parameter] = whole.permute([order.index(axis) for axis in range(len(order))])
        return torch.ones(())

    update.clip = look  # type: ignore[method-assign]
    with RowGradients() as rows:
        update.step(loss_of(sae, x), rows, 1e-3)
    for parameter, gradient in zip(sae.parameters(), expected, strict=True):
        torch.testing.assert_close(found[parameter], torch.zeros_like(parameter) if gradient is None else gradient)


@pytest.mark.parametrize("model", MODELS)
def test_spectral_kernels_have_a_rate_of_their_own(model: str) -> None:
    """A first step of Adam moves every number that has a gradient by its rate."""
    torch.manual_seed(0)
    sae = MODELS[model]().double()
    before = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    update, x = Update(sae, Single(), gradient_clip=1e9, spectral_rate=0.25), torch.randn(4, 2, 12, dtype=torch.float64)
    with RowGradients() as rows:
        update.step(loss_of(sae, x), rows, 1e-3)
    for name, parameter in sae.named_parameters():
        moved = parameter.detach() - before[name]
        moved = torch.view_as_real(moved) if moved.is_complex() else moved
        moved = moved[moved.abs() > 1e-5].abs()
        expected = 0.25e-3 if ".conv.weight.tensor" in name else 1e-3
        assert len(moved), name
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-2, atol=0)
