import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuralop_sae as ns
from neuralop_sae.analysis.matching import centre, chance_cosine, match_atoms
from neuralop_sae.data.concepts import Gabors, ZonalKernels
from neuralop_sae.data.synthetic import SyntheticConcepts

LINE, PLANE, SPHERE = ns.FourierBasis(5), ns.FourierBasis((5, 5)), ns.SphericalBasis((8, 16))


def random_atoms(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), shift=st.tuples(st.integers(-20, 20), st.integers(-20, 20)))
@settings(max_examples=30, deadline=None)
def test_order_scale_and_place_make_no_difference(seed: int, shift: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    true, learned = random_atoms(4, 2, 6, 9, seed=seed), random_atoms(6, 2, 6, 9, seed=seed + 1)
    before = match_atoms(learned, true, PLANE)
    order = torch.randperm(6, generator=generator)
    scale = torch.rand(6, 1, 1, 1, dtype=torch.float64, generator=generator) + 0.1
    after = match_atoms((scale * learned)[order].roll(shift, (-2, -1)), true, PLANE)
    torch.testing.assert_close(after.cosine, before.cosine, rtol=0, atol=1e-12)
    assert torch.equal(order[after.learned], before.learned)
    assert 0 < before.matched_cosine < 1


@pytest.mark.parametrize(("basis", "shape"), [(LINE, (3, 16)), (PLANE, (2, 8, 5)), (SPHERE, (2, 17, 32))])
def test_what_is_found_again_has_cosine_one(basis, shape) -> None:
    true = random_atoms(5, *shape)
    learned = torch.cat([random_atoms(3, *shape, seed=1), true.flip(0)])
    matching = match_atoms(learned, true, basis)
    torch.testing.assert_close(matching.cosine, torch.ones(5, dtype=torch.float64))
    assert matching.learned.tolist() == [7, 6, 5, 4, 3]
    assert matching.shift.abs().max() == 0


def test_the_shift_takes_the_learned_atom_to_the_true_one() -> None:
    true = random_atoms(1, 2, 8, 10)
    matching = match_atoms(true.roll((-3, 4), (-2, -1)), true, PLANE)
    assert matching.shift.tolist() == [[3 / 8, 6 / 10]]


def test_atoms_can_be_compared_where_they_stand() -> None:
    true = random_atoms(3, 2, 8, 10)
    moved = true.roll(1, -1)
    product = torch.einsum(
        "pcab,qcab->pq", *(torch.nn.functional.normalize(a.flatten(1)).reshape(a.shape) for a in (moved, true))
    )
    best = max(sum(float(product[i, j]) for j, i in enumerate(order)) for order in itertools.permutations(range(3)))
    matching = match_atoms(moved, true, PLANE, translate=False)
    assert matching.matched_cosine == pytest.approx(best / 3)
    assert matching.shift.abs().max() == 0
    assert match_atoms(moved, true, PLANE).matched_cosine == pytest.approx(1)


def test_all_channels_move_together() -> None:
    true = torch.zeros(1, 2, 8)
    true[0, :, 0] = torch.tensor([3.0, 4.0])
    torn = torch.stack([true[:, 0], true[:, 1].roll(2, -1)], 1)
    # The best translation lays only the stronger channel on itself: 16 of 25.
    assert match_atoms(torn, true, LINE).matched_cosine == pytest.approx(16 / 25)


def test_sign() -> None:
    spike = torch.zeros(1, 1, 8)
    spike[..., 3] = 1
    assert match_atoms(-spike, spike, LINE).matched_cosine == pytest.approx(0, abs=1e-12)
    assert match_atoms(-spike, spike, LINE, signed=False).matched_cosine == pytest.approx(1)
    wave = torch.cos(2 * torch.pi * torch.arange(8) / 8).reshape(1, 1, 8)  # half a turn is its negative
    assert match_atoms(-wave, wave, LINE).matched_cosine == pytest.approx(1)
    field = random_atoms(1, 1, 17, 32)
    assert match_atoms(-field, field, SPHERE).matched_cosine == pytest.approx(-1)
    assert match_atoms(-field, field, SPHERE, signed=False).matched_cosine == pytest.approx(1)


def test_the_assignment_is_the_best_of_all() -> None:
    for seed in range(5):
        true, learned = random_atoms(3, 1, 12, seed=seed), random_atoms(4, 1, 12, seed=seed + 50)
        pairs = torch.tensor([[match_atoms(b[None], a[None], LINE).matched_cosine for b in learned] for a in true])
        best = max(sum(float(pairs[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(4), 3))
        assert match_atoms(learned, true, LINE).matched_cosine == pytest.approx(best / 3)


def test_true_atoms_without_a_learned_one_count_as_zero() -> None:
    true = random_atoms(4, 1, 12)
    matching = match_atoms(true[:1], true, LINE)
    assert matching.cosine.tolist() == pytest.approx([1, 0, 0, 0])
    assert matching.learned.tolist() == [0, -1, -1, -1]
    assert matching.matched_cosine == pytest.approx(0.25)


def test_only_living_concepts_are_assigned() -> None:
    true = random_atoms(2, 1, 12)
    learned = torch.cat([true, random_atoms(2, 1, 12, seed=9)])
    matching = match_atoms(learned, true, LINE, alive=torch.tensor([False, True, True, True]))
    assert matching.learned[1] == 1
    assert matching.learned[0] in (2, 3)
    assert float(matching.cosine[0]) < 0.99
    assert match_atoms(learned, true, LINE, alive=torch.zeros(4, dtype=torch.bool)).matched_cosine == 0


def test_an_atom_of_zero_is_like_nothing() -> None:
    true = random_atoms(2, 1, 12)
    learned = torch.cat([true[:1], torch.zeros(1, 1, 12)])
    assert match_atoms(learned, true, LINE).cosine.tolist() == pytest.approx([1, 0], abs=1e-12)


def test_on_the_sphere_it_is_the_cosine_of_spectra_by_degree() -> None:
    model = SyntheticConcepts(ZonalKernels(5, degrees=(0, 9)))
    atoms = model.atoms((41, 80))
    d, sign = model.kernels.spectrum, model.kernels.amplitude[:, 0]
    weights = 2 * torch.arange(d.shape[1], dtype=torch.float64) + 1
    for i, j in itertools.combinations(range(5), 2):
        expected = float(sign[i] * sign[j] * (weights * d[i] * d[j]).sum())
        found = match_atoms(atoms[i : i + 1], atoms[j : j + 1], ns.SphericalBasis((20, 40))).matched_cosine
        assert found == pytest.approx(expected, abs=1e-9)


def test_random_directions_have_the_cosine_that_chance_gives() -> None:
    # Constant fields of two channels are directions in the plane: the mean of |cos| of a random angle is 2 / pi.
    learned, true = random_atoms(4000, 2, 1), random_atoms(4000, 2, 1, seed=1)
    found = [
        match_atoms(a[None], b[None], LINE, signed=False).matched_cosine for a, b in zip(learned[:1500], true, strict=False)
    ]
    assert sum(found) / len(found) == pytest.approx(2 / math.pi, abs=4 * 0.31 / 1500**0.5)


def test_chance_is_that_of_fresh_models_and_leaves_the_generator_alone() -> None:
    true = SyntheticConcepts(Gabors(5)).atoms((64,))
    arguments = {"in_channels": 1, "n_concepts": 5, "n_modes": (33,), "skip": None}
    sae = ns.SAEFNO(**arguments)
    state = torch.get_rng_state()
    chance = chance_cosine(sae, true, n_draws=3, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    found = []
    for seed in (4, 5, 6):
        torch.manual_seed(seed)
        fresh = ns.SAEFNO(**arguments)
        found.append(match_atoms(fresh.atoms(range(5), (64,)), true, fresh.basis).matched_cosine)
    assert chance.mean == pytest.approx(sum(found) / 3)
    assert chance.std == pytest.approx(torch.tensor(found).std().item())
    # More atoms to choose from, or fewer modes to be different in, and chance is higher.
    assert chance_cosine(ns.SAEFNO(1, 20, (33,), skip=None), true).mean > chance.mean + 0.03
    assert chance_cosine(ns.SAEFNO(1, 5, (127,), skip=None), true).mean < chance.mean - 0.1
    many = ns.SAEFNO(1, 20, (33,), skip=None)
    assert chance_cosine(many, true, n_atoms=5).mean < chance_cosine(many, true).mean - 0.03


def test_chance_does_not_depend_on_what_was_learned() -> None:
    true = SyntheticConcepts(ZonalKernels(2)).atoms((17, 32))
    sae = ns.SAESFNO(1, 3, (8, 16), skip=None, isotropic=True)
    before = chance_cosine(sae, true, n_draws=2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.mul_(0).add_(1)
    assert chance_cosine(sae, true, n_draws=2) == before


@given(seed=st.integers(0, 1000), shift=st.tuples(st.integers(-20, 20), st.integers(-20, 20)))
@settings(max_examples=30, deadline=None)
def test_centred_atoms_are_the_same_wherever_they_were(seed: int, shift: tuple[int, int]) -> None:
    atoms = random_atoms(3, 2, 7, 10, seed=seed)
    torch.testing.assert_close(centre(atoms.roll(shift, (-2, -1)), PLANE), centre(atoms, PLANE), rtol=0, atol=0)


@pytest.mark.parametrize("n", [8, 9])
def test_centred_energy_is_in_the_middle(n: int) -> None:
    spike = torch.zeros(2, 1, n)
    spike[0, 0, 1], spike[1, 0, n - 1] = 1.0, -2.0
    assert centre(spike, LINE).abs().argmax(-1).flatten().tolist() == [n // 2, n // 2]
    pair = torch.zeros(1, 2, n)
    pair[0, 0, n - 1], pair[0, 1, 0] = 1.0, 1.0  # its middle is between two points
    for shift in range(n):
        torch.testing.assert_close(centre(pair.roll(shift, -1), LINE), centre(pair, LINE))
    gabors = SyntheticConcepts(Gabors(3, wavenumbers=(16, 32))).atoms((256,))
    torch.testing.assert_close(centre(gabors.roll(77, -1), LINE), gabors, rtol=0, atol=1e-12)


def test_on_the_sphere_atoms_stay() -> None:
    atoms = random_atoms(2, 1, 17, 32)
    assert centre(atoms, SPHERE) is atoms


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="of one grid of 1 dimensions"):
        match_atoms(torch.zeros(2, 1, 8), torch.zeros(2, 1, 9), LINE)
    with pytest.raises(ValueError, match="of one grid of 2 dimensions"):
        match_atoms(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), PLANE)
    with pytest.raises(ValueError, match=r"alive has one entry per learned atom, \(2,\)"):
        match_atoms(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), LINE, alive=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="true atoms hold a NaN or infinity"):
        match_atoms(torch.ones(2, 1, 8), torch.full((2, 1, 8), torch.nan), LINE)
    with pytest.raises(ValueError, match="at least 2 draws"):
        chance_cosine(ns.SAEFNO(1, 2, (5,)), torch.zeros(2, 1, 8), n_draws=1)
