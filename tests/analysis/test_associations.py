import numpy as np
import torch

from neuralop_sae.analysis.associations import Exchanged, Fields, Translated

GRID = (4, 5)


def test_fields_are_standardised_and_cut_at_their_quantile():
    measure = torch.rand(20, dtype=torch.float64)
    measure /= measure.sum()
    values = 1e6 + torch.randn(30, 20, dtype=torch.float64)
    partner = np.arange(30)[None]
    constant = torch.full((30, 20), 3.0)
    fields = Fields.of([values, constant], measure, torch.arange(20) // 10, partner, 0.7, torch.float32)
    assert fields.values.dtype == torch.float32
    q = fields.values[:, 0].double()
    assert abs(float((q @ measure).mean())) < 1e-6
    assert abs(float((q.square() @ measure).mean()) - 1) < 1e-6
    assert fields.values[:, 1].abs().max() == 0
    assert abs(float((fields.high[:, 0].double() @ measure).mean()) - 0.3) < 5e-3
    assert not fields.high[:, 1].any()
    whole = (values * measure).reshape(30, 2, 10).sum(2)
    torch.testing.assert_close(fields.by_tile(values), whole)


def test_products_with_exchanged_fields_against_a_loop():
    codes, fields = torch.randn(3, 20, dtype=torch.float64), torch.randn(6, 2, 20, dtype=torch.float64)
    orders = np.stack([np.random.default_rng(seed).permutation(6) for seed in range(4)])
    null = Exchanged(orders)
    expected = torch.stack([codes @ fields[order[5]].T for order in orders], -1)
    torch.testing.assert_close(null.products(codes, fields, 5), expected)
    np.testing.assert_allclose(null.sums(np.arange(6.0), np.array([0, 5])), orders[:, 0] + orders[:, 5])


def test_products_with_translated_fields_against_a_loop():
    codes, fields = torch.randn(3, 20, dtype=torch.float64), torch.randn(6, 2, 20, dtype=torch.float64)
    shifts = np.random.default_rng(0).integers(0, GRID, (7, 6, 2))
    moved = [fields[4].reshape(2, *GRID).roll(tuple(shift), (1, 2)).flatten(1) for shift in shifts[:, 4].tolist()]
    expected = torch.stack([codes @ field.T for field in moved], -1)
    torch.testing.assert_close(Translated(shifts, GRID).products(codes, fields, 4), expected)
    assert Translated(shifts, GRID).sums(np.arange(6.0), np.array([0, 5])).tolist() == [5.0] * 7
