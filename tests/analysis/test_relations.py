"""Stability and neighbours against dictionaries whose relations are known."""

from __future__ import annotations

import copy

import pytest
import torch

from neuralop_sae import PCA, SAE, SAEFNO, SAEMLP, SAESFNO, FieldPCA, Lifted, TopK
from neuralop_sae.analysis.matching import chance_cosine
from neuralop_sae.analysis.relations import alike, nearest, stability, stability_by_chance, together


def make(seed: int, n_concepts: int = 6) -> SAEFNO:
    torch.manual_seed(seed)
    return SAEFNO(2, n_concepts, (5, 5), concept_rule=TopK(2))


def test_stability_is_one_for_concepts_that_come_again_in_another_order() -> None:
    sae, other = make(0), make(0)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    atoms = other.atoms(range(6), other.atom_grid)
    other.atoms = lambda concepts, shape: atoms[order][torch.as_tensor(concepts)]  # type: ignore[method-assign]
    torch.testing.assert_close(stability(sae, other), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
    assert stability(sae, make(1)).max() < 0.99
    assert (stability(sae, make(1, 4)) == 0).sum() == 2


def test_chance_is_that_of_models_as_they_are_made() -> None:
    sae, other = make(0), make(1, 9)
    state = torch.get_rng_state()
    chance = stability_by_chance(sae, other, n_draws=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.stack([stability(sae, make(seed, 9)) for seed in (7, 8)]).mean(0)
    torch.testing.assert_close(chance, drawn)
    atoms = sae.atoms(range(6), sae.atom_grid)
    assert float(chance.mean()) == pytest.approx(chance_cosine(other, atoms, n_draws=2, seed=7).mean)


def kept(sae: SAEFNO, living: list[int]) -> SAEFNO:
    """The model with all other concepts off, whatever the field."""
    with torch.no_grad():
        off = torch.ones(sae.n_concepts, dtype=torch.bool)
        off[living] = False
        sae.concept_encoder.conv.bias[off] = -100
    return sae


def test_dead_concepts_are_neither_asked_about_nor_offered() -> None:
    x = torch.randn(9, 2, 8, 8)
    sae, other = kept(make(0, 12), [1, 4, 9]), kept(make(0, 12), [4, 9, 10, 11])
    found = stability(sae, other, x)
    assert found.isnan().nonzero()[:, 0].tolist() == [0, 2, 3, 5, 6, 7, 8, 10, 11]
    torch.testing.assert_close(found[[4, 9]], torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert found[1] < 0.99
    assert stability(sae, other)[1] > 0.99
    chance = stability_by_chance(sae, other, x)
    assert torch.equal(chance.isnan(), found.isnan())
    few, many = (float(stability_by_chance(sae, other, which).nanmean()) for which in (x, None))
    assert few < many
    assert stability(kept(make(0, 12), []), other, x).isnan().all()


def rolled(sae: SAE) -> SAE:
    """The same model of fields that are moved by three points."""
    other = copy.deepcopy(sae)
    inner = other.inner if isinstance(other, Lifted) else other
    inner.decoder_weight.data = inner.decoder_weight.data.roll(3, -1)
    return other


FLAT = SAEMLP(1, 5, (12, 12), k=2)


@pytest.mark.parametrize("sae", [FLAT, Lifted(FLAT, channels=3), FieldPCA(1, 5, (12, 12))], ids=lambda sae: type(sae).__name__)
def test_concepts_that_do_not_move_are_compared_where_they_stand(sae: SAE) -> None:
    assert stability(sae, sae).min() > 0.999
    assert stability(sae, rolled(sae)).max() < 0.9


@pytest.mark.parametrize("lift", [False, True])
@pytest.mark.parametrize("rule", ["Rectify", "Identity"])
def test_an_atom_and_its_negative_differ_where_codes_are_positive(rule: str, lift: bool) -> None:
    torch.manual_seed(0)
    sae: SAE = SAEFNO(2, 6, (5, 5), domain_rule=rule)
    sae = Lifted(sae, channels=3) if lift else sae
    other = copy.deepcopy(sae)
    decoder = (other.inner if isinstance(other, Lifted) else other).concept_decoder
    decoder.scale_concepts(-torch.ones(6))
    assert (float(stability(sae, other).min()) > 0.999) == (rule == "Identity")


@pytest.mark.parametrize("sae", [PCA(6, 3), FieldPCA(2, 4, (8, 8))], ids=lambda sae: type(sae).__name__)
def test_chance_of_principal_components_is_that_of_random_ones(sae: PCA | FieldPCA) -> None:
    sae.fit(torch.randn(20, sae.in_channels, 8, 8))
    chance = stability_by_chance(sae, sae, n_draws=4)
    assert chance.min() > 0
    assert chance.max() < 0.95


def test_what_cannot_be_compared() -> None:
    with pytest.raises(TypeError, match="another SAE, got str"):
        stability(make(0), "b")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the same channels and domain"):
        stability(make(0), SAESFNO(2, 6, (4, 8), concept_rule=TopK(2)))


def test_alike_is_symmetric_with_ones() -> None:
    cosines = alike(make(0), [4, 0, 2])
    torch.testing.assert_close(cosines, cosines.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_together_is_intersection_over_union() -> None:
    on = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    expected = torch.tensor([[1, 2 / 3, 1 / 3, 0], [2 / 3, 1, 1 / 2, 0], [1 / 3, 1 / 2, 1, 0], [0, 0, 0, 0]]).double()
    torch.testing.assert_close(together(on), expected, atol=1e-7, rtol=0)


def test_nearest_leaves_out_itself_and_strangers() -> None:
    likeness = torch.tensor([[1.0, 0.2, 0.7], [0.2, 1.0, 0.0], [0.7, 0.0, 1.0]])
    found = nearest(likeness, [5, 9, 7], n=2)
    assert {c: [other for other, _ in row] for c, row in found.items()} == {5: [7, 9], 9: [5], 7: [5]}
