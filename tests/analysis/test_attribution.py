"""Attribution where the answer is known, and its axioms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from neuralop.models import FNO
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.analysis.attribution import attribute, check_by_ablation
from neuralop_sae.attach.edits import ablate
from neuralop_sae.attach.interventions import splice


def quadratic(y: Tensor) -> Tensor:
    return y.square().mean((1, 2, 3))


def linear(y: Tensor) -> Tensor:
    return y[:, 0, :3].sum((1, 2)) - 2 * y[:, 0, 5, 2]


def make_sae() -> Any:
    torch.manual_seed(1)
    return ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(4)).double()


def make_linear_operator() -> nn.Module:
    """Nonlinear up to the site "1", linear behind it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 1), nn.GELU(), nn.Conv2d(6, 2, 3, padding=1, padding_mode="circular")).double()


X = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["gradient_times_code", "integrated_gradients"])
def test_a_linear_tail_and_functional_give_exactly_the_ablation(method: Any) -> None:
    model, sae = make_linear_operator(), make_sae()
    found = attribute(model, "1", sae, X, linear, method=method, n_steps=3, batch_size=2)
    check = check_by_ablation(found, model, "1", sae, X, linear, range(12), batch_size=3)
    np.testing.assert_allclose(check.table.attributed, check.table.ablated, rtol=1e-9, atol=1e-12)
    assert check.relative_error < 1e-9
    assert check.pearson == pytest.approx(1)
    assert check.spearman == pytest.approx(1)
    assert check.table.ablated.abs().max() > 0.01
    with torch.no_grad(), splice(model, "1", sae, ablate(int(found.concept[0]))):
        without = linear(model(X))[0]
    assert float(found.values[0]) == pytest.approx(float(linear(model(X))[0].detach() - without))


def test_integrated_gradients_are_complete() -> None:
    torch.manual_seed(0)
    model, sae = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=6, n_layers=2).eval(), make_sae()
    x = X.float()
    with torch.no_grad(), splice(model, "fno_blocks.0", sae, ablate(range(12))):
        nothing = quadratic(model(x))
    whole = quadratic(model(x)).detach() - nothing
    errors = []
    for n_steps in (2, 8):
        found = attribute(model, "fno_blocks.0", sae, x, quadratic, method="integrated_gradients", n_steps=n_steps)
        errors.append(float((found.to_dense().sum(1) - whole).abs().max() / whole.abs().max()))
    assert errors[1] < 0.1 * errors[0]  # the midpoint rule: a sixteenth
    assert errors[1] < 1e-3


def test_of_a_quadratic_functional_both_methods_are_known() -> None:
    """F of the codes is |D z + e|^2: the gradient at t z is linear in t, and one midpoint is enough."""
    model, sae = make_linear_operator(), make_sae()
    gradient = attribute(model, "1", sae, X, quadratic).to_dense()
    integrated = attribute(model, "1", sae, X, quadratic, method="integrated_gradients", n_steps=1).to_dense()
    many = attribute(model, "1", sae, X, quadratic, method="integrated_gradients", n_steps=5).to_dense()
    torch.testing.assert_close(integrated, many)
    assert (gradient - integrated).abs().max() > 1e-3 * integrated.abs().max()


def test_the_sphere_is_weighted_by_its_functional_not_twice() -> None:
    """The functional brings the quadrature; attribution of its linear part is again the ablation."""
    torch.manual_seed(0)
    sae = ns.SAESFNO(6, 12, (4, 8), concept_rule=ns.TopK(4)).double()
    x = torch.randn(3, 1, 9, 16, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.GELU(), nn.Conv2d(6, 1, 1)).double()
    area = sae.basis.quadrature((9, 16), like=x)

    def functional(y: Tensor) -> Tensor:
        return (y[:, 0] * area).flatten(1).sum(1)

    found = attribute(model, "1", sae, x, functional)
    assert check_by_ablation(found, model, "1", sae, x, functional, range(12)).relative_error < 1e-9


def test_table_and_dense_form() -> None:
    model, sae = make_linear_operator(), make_sae()
    found = attribute(model, "1", sae, X, linear)
    table = found.table()
    dense = found.to_dense()
    assert tuple(dense.shape) == (5, 12)
    assert table.magnitude.is_monotonic_decreasing
    for row in table.itertuples():
        assert row.attribution == pytest.approx(float(dense[:, row.concept].mean()))
        assert row.magnitude == pytest.approx(float(dense[:, row.concept].abs().mean()))
        assert row.frequency == pytest.approx(float((dense[:, row.concept] != 0).double().mean()))
    assert found.values.isfinite().all()
    assert not found.values.requires_grad


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model, sae = make_linear_operator().train(), make_sae().train()
    with torch.no_grad():
        attribute(model, "1", sae, X, linear)
    assert model.training
    assert sae.training
    assert all(parameter.grad is None for parameter in (*model.parameters(), *sae.parameters()))


def test_bad_arguments() -> None:
    model, sae = make_linear_operator(), make_sae()
    with pytest.raises(ValueError, match="unknown method 'shap'; known: gradient_times_code"):
        attribute(model, "1", sae, X, linear, method="shap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the functional gave \(\) for a batch of 5"):
        attribute(model, "1", sae, X, lambda y: y.sum())
    with pytest.raises(ValueError, match="n_steps"):
        attribute(model, "1", sae, X, linear, n_steps=0)
    found = attribute(model, "1", sae, X, linear)
    with pytest.raises(ValueError, match="of 5 samples, the inputs are 2"):
        check_by_ablation(found, model, "1", sae, X[:2], linear, [0, 1])
    with pytest.raises(ValueError, match="out of range"):
        check_by_ablation(found, model, "1", sae, X, linear, [12])
