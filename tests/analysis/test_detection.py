import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from neuralop_sae.analysis.detection import DetectionCurve, detect_events, event_chance, event_scores, find_peaks
from neuralop_sae.analysis.matching import Matching, match_atoms
from neuralop_sae.data.concepts import Gabors, ZonalKernels
from neuralop_sae.data.domains import Box, Sphere
from neuralop_sae.data.synthetic import SyntheticConcepts
from neuralop_sae.layers.fourier import FourierBasis


def line(n: int, **heights: float) -> torch.Tensor:
    code = torch.zeros(1, n)
    for place, height in heights.items():
        code[0, int(place[1:])] = height
    return code


def detected(code, events, domain, tolerance):
    position = torch.tensor(events, dtype=torch.float64).reshape(-1, domain.n_dim)
    return detect_events(code, torch.zeros(len(position), dtype=torch.int64), position, domain, tolerance)


def test_the_curve_is_its_definition() -> None:
    curve = DetectionCurve(torch.tensor([5.0, 4, 3, 1]), torch.tensor([True, False, True, False]), 4)
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert curve.recall.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 2, 1 / 2])
    assert curve.f1.tolist() == pytest.approx([2 / 5, 2 / 6, 4 / 7, 4 / 8])
    f1 = 2 * curve.precision * curve.recall / (curve.precision + curve.recall)
    torch.testing.assert_close(curve.f1, f1)
    assert (curve.best, curve.best_f1) == (2, pytest.approx(4 / 7))
    assert curve.average_precision == pytest.approx((1 + 2 / 3) / 4)


def test_nothing_to_find_and_nothing_found() -> None:
    silent = detected(line(10), [[0.2]], Box(1), 0.05)
    assert (silent.best_f1, silent.best, silent.average_precision) == (0.0, -1, 0.0)
    idle = detected(line(10, p3=1.0), [], Box(1), 0.05)
    assert idle.hit.tolist() == [False]
    assert math.isnan(idle.average_precision)
    assert math.isnan(float(idle.recall[0]))


def test_a_peak_finds_an_event_within_the_tolerance_only_also_round_the_edge() -> None:
    for event, hit in ((0.5, True), (0.54, True), (0.56, False)):
        assert detected(line(10, p5=1.0), [[event]], Box(1), 0.05).hit.tolist() == [hit]
    assert detected(line(10, p0=1.0), [[0.97]], Box(1), 0.05).hit.tolist() == [True]
    assert detected(line(10, p0=1.0), [[1.94]], Box(1, 2.0), 0.07).hit.tolist() == [True]


def test_an_event_is_found_once_and_by_the_higher_peak() -> None:
    # Both peaks lie within the tolerance of the event, but not of each other.
    found = detected(line(20, p9=1.0, p11=2.0), [[0.5]], Box(1), 0.06)
    assert found.height.tolist() == [2.0, 1.0]
    assert found.hit.tolist() == [True, False]
    both = detected(line(20, p9=1.0, p11=2.0), [[0.5], [0.44]], Box(1), 0.06)
    assert both.hit.tolist() == [True, True]


@given(
    peaks=st.sets(st.integers(0, 49), max_size=8), events=st.lists(st.floats(0, 0.999), max_size=6), seed=st.integers(0, 99)
)
@example(peaks={0, 1, 4}, events=[0.0, 0.04], seed=15)  # a peak half way between two events
@settings(max_examples=100, deadline=None)
def test_hits_are_pairs_within_the_tolerance(peaks: set[int], events: list[float], seed: int) -> None:
    code, tolerance = torch.zeros(1, 50, dtype=torch.float64), 0.05
    code[0, list(peaks)] = torch.rand(len(peaks), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    found = detected(code, [[event] for event in events], Box(1), tolerance)
    _, position, height = find_peaks(code, Box(1), tolerance)
    apart = np.abs(position.numpy() - np.array(events)[None]) if events else np.zeros((len(position), 0))
    near = np.minimum(apart, 1 - apart) <= tolerance
    pairs = maximum_bipartite_matching(csr_array(near), "column") if near.size else np.array([-1])
    most = int((pairs >= 0).sum())
    # Taking the surest peaks first may miss pairs, but never more than half of them.
    assert most / 2 <= int(found.hit.sum()) <= most
    assert torch.equal(found.height, height.sort(descending=True).values)
    louder = detected(3 * code, [[event] for event in reversed(events)], Box(1), tolerance)
    assert torch.equal(louder.hit, found.hit)


def test_samples_are_kept_apart_and_their_peaks_ranked_together() -> None:
    code = torch.zeros(3, 10)
    code[0, 2], code[1, 2], code[2, 7] = 1.0, 3.0, 2.0
    sample, position = torch.tensor([0, 2]), torch.tensor([[0.2], [0.7]])
    found = detect_events(code, sample, position, Box(1), 0.03)
    assert found.height.tolist() == [3.0, 2.0, 1.0]
    assert found.hit.tolist() == [False, True, True]
    assert found.n_events == 2


def test_close_peaks_and_plateaus_count_once() -> None:
    sample, position, height = find_peaks(line(20, p4=1.0, p5=1.0, p6=1.0, p12=2.0, p14=3.0), Box(1), 0.11)
    assert sample.tolist() == [0, 0]
    assert height.tolist() == [3.0, 1.0]
    assert position[0].item() == pytest.approx(0.7)
    assert len(find_peaks(line(20, p12=2.0, p14=3.0), Box(1), 0.09)[0]) == 2


def test_only_positive_local_maxima_are_peaks() -> None:
    x = torch.arange(40).double() / 40
    code = (torch.cos(2 * torch.pi * 3 * x) - 0.5)[None]
    _, position, height = find_peaks(code, Box(1), 0.01)
    assert sorted(position[:, 0].tolist()) == pytest.approx([0, 13 / 40, 27 / 40])
    assert height.max() == pytest.approx(0.5)
    assert len(find_peaks(-code.abs(), Box(1), 0.01)[0]) == 0
    corner = torch.zeros(1, 8, 8)
    corner[0, 3, 3], corner[0, 4, 4] = 1.0, 2.0  # diagonal neighbours
    assert find_peaks(corner, Box(2), 0.01)[2].tolist() == [2.0]


def test_on_the_sphere_distances_do_not_depend_on_latitude() -> None:
    sphere = Sphere()
    for colatitude in (0.03, 0.3, 1.5, 3.0):
        place = torch.tensor([colatitude, 0.1], dtype=torch.float64)
        code = sphere.bump(place[None], (181, 360), 0.1)
        near = [[colatitude, 0.1 + 0.08 / math.sin(colatitude)]] if colatitude > 0.1 else [[0.05, 0.1 + math.pi]]
        assert detected(code, near, sphere, 0.1).hit[0]  # others are rounding, far away
        assert not detected(code, near, sphere, 0.03).hit.any()


@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss"])
def test_a_bump_at_a_pole_is_one_peak(grid: str) -> None:
    sphere = Sphere(grid)
    code = sphere.bump(torch.tensor([[0.0, 0.0], [torch.pi, 1.0]], dtype=torch.float64), (33, 64), 0.3).sum(0, keepdim=True)
    _, position, _ = find_peaks(code, sphere, 0.2)
    assert len(position) == 2
    assert sorted(position[:, 0].tolist()) == pytest.approx([0, torch.pi], abs=0.08)


@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss", "lobatto"])
@pytest.mark.parametrize("shape", [(33, 64), (32, 63)])
@pytest.mark.parametrize("colatitude", [0.02, 0.3, 1.2, 2.9])
def test_a_bump_beside_a_pole_is_one_peak_too(grid: str, shape: tuple[int, int], colatitude: float) -> None:
    """Of the many points of a row at a pole, those beyond a bump have only lower neighbours, but are the same point."""
    sphere = Sphere(grid)
    place = torch.tensor([[colatitude, 1.0]], dtype=torch.float64)
    code = sphere.bump(place, shape, 0.3)
    found = detected(code, place.tolist(), sphere, 0.15)
    assert found.hit.tolist() == [True]


def truth(model, shape, n=40, **options):
    data = model.sample(n, shape, seed=3, **options)
    atoms = model.atoms(shape, **options)
    return data, atoms


@pytest.mark.parametrize(
    ("model", "shape", "tolerance"),
    [
        (SyntheticConcepts(Gabors(3), rate=0.5), (128,), 0.02),
        (SyntheticConcepts(Gabors(3, n_dim=2), rate=0.5), (48, 48), 0.05),
        (SyntheticConcepts(ZonalKernels(3), rate=0.5), (33, 64), 0.2),
    ],
)
def test_the_true_codes_find_all_events_and_others_do_not(model, shape, tolerance) -> None:
    data, atoms = truth(model, shape)
    basis = data.domain.basis(5)
    matching = match_atoms(atoms, atoms, basis)
    codes = data.codes(tolerance / 2)
    curves = event_scores(codes, data.events, matching, data.domain, tolerance=tolerance)
    by_chance = event_chance(codes, data.events, matching, data.domain, tolerance=tolerance)
    assert [curve.n_events for curve in curves] == [int((data.events.concept == c).sum()) for c in range(3)]
    for curve, other in zip(curves, by_chance, strict=True):
        assert curve.n_events > 10
        assert curve.best_f1 > 0.93  # two events of one concept now and then lie within the tolerance
        assert float(curve.precision[curve.best]) == pytest.approx(1)
        assert other.best_f1 < 0.4
        assert other.n_events == curve.n_events


def test_concepts_learned_elsewhere_and_in_another_order_are_followed() -> None:
    model = SyntheticConcepts(Gabors(3), rate=0.5)
    data, atoms = truth(model, (128,), length=2.0)
    codes = data.codes(0.015)
    known = event_scores(codes, data.events, match_atoms(atoms, atoms, FourierBasis(5)), data.domain, tolerance=0.02)
    # Kernels 10 points to the right, codes 10 points to the left: the same fields.
    moved, learned = atoms.roll(10, -1)[[2, 0, 1]], codes.roll(-10, -1)[:, [2, 0, 1]]
    matching = match_atoms(moved, atoms, FourierBasis(5))
    found = event_scores(learned, data.events, matching, data.domain, tolerance=0.02)
    for a, b in zip(found, known, strict=True):
        assert torch.equal(a.hit, b.hit)
    unmoved = Matching(matching.cosine, matching.learned, torch.zeros_like(matching.shift))
    lost = event_scores(learned, data.events, unmoved, data.domain, tolerance=0.02)
    assert max(curve.best_f1 for curve in lost) < 0.4


def test_scores_are_the_same_on_finer_grids() -> None:
    model = SyntheticConcepts(Gabors(3), rate=0.5)
    data, atoms = truth(model, (128,))
    matching = match_atoms(atoms, atoms, FourierBasis(5))
    for shape in ((256,), (512,)):
        fine = event_scores(data.on(shape).codes(0.015), data.events, matching, data.domain, tolerance=0.03)
        coarse = event_scores(data.codes(0.015), data.events, matching, data.domain, tolerance=0.03)
        assert [c.best_f1 for c in fine] == pytest.approx([c.best_f1 for c in coarse], abs=0.03)


def test_an_unmatched_concept_finds_nothing() -> None:
    model = SyntheticConcepts(Gabors(2), rate=1.0)
    data, atoms = truth(model, (64,))
    curves = event_scores(
        data.codes(0.02)[:, :1], data.events, match_atoms(atoms[:1], atoms, FourierBasis(5)), data.domain, tolerance=0.03
    )
    assert curves[0].best_f1 > 0.9
    assert curves[1].best_f1 == 0
    assert curves[1].n_events > 10


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="a distance above 0"):
        detected(line(10), [[0.1]], Box(1), 0.0)
    with pytest.raises(ValueError, match="2 positive sizes"):
        detected(line(10), [[0.1, 0.1]], Box(2), 0.1)
