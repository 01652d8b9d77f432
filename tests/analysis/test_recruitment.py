import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.recruitment import recruitment

PLANE = ns.FourierBasis((5, 5))


def using(*concepts, n=10, p=6):
    acts = torch.zeros(n, p, 8, 8)
    acts[:, list(concepts)] = torch.rand(n, len(concepts), 8, 8)
    return acts


def test_which_concepts_are_used_where(channels):
    acts = {100: using(0, 1, 2), 400: using(1, 2, 3), 900: using(5)}
    acts[900][0, 4] = 1.0  # in one of ten samples
    found = recruitment(channels(6, PLANE), acts, min_frequency=0.2, batch_size=3)
    assert found.frequency[900].tolist() == pytest.approx([0, 0, 0, 0, 0.1, 1])
    expected = [[1, 2 / 4, 0], [2 / 4, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(found.jaccard, expected)
    assert found.shared == []
    assert found.unique == {100: [0], 400: [3], 900: [5]}
    assert recruitment(channels(6, PLANE), acts, min_frequency=0.1).unique[900] == [4, 5]
    pair = recruitment(channels(6, PLANE), {100: acts[100], 400: acts[400]})
    assert pair.shared == [1, 2]
    assert pair.concepts.loc[3].tolist() == [3, 3]


def test_chance_is_the_overlap_of_random_sets(channels):
    used = np.zeros((2000, 60, 6))
    for draw in range(2000):
        generator = np.random.default_rng(draw)
        used[draw, generator.permutation(60)[:30], 0] = 1
        used[draw, generator.permutation(60)[:20], 1] = 1
    both = (used[:, :, 0] * used[:, :, 1]).sum(1)
    acts = {"a": using(*range(30), p=60), "b": using(*range(20), p=60)}
    found = recruitment(channels(60, PLANE), acts)
    assert found.chance.loc["a", "b"] == pytest.approx((both / (50 - both)).mean(), rel=0.02)


def test_concepts_of_two_models_are_matched():
    """The second model is the first with its concepts renumbered and moved, and two of them made anew."""
    torch.manual_seed(0)
    first = ns.SAEFNO(3, 8, (5, 5), skip=None, concept_rule=ns.All(), domain_rule=ns.Identity())
    second = ns.SAEFNO(3, 8, (5, 5), skip=None, concept_rule=ns.All(), domain_rule=ns.Identity())
    order = [3, 2, 1, 0, 7, 6, 5, 4]
    anew = {0, 5}
    mine, theirs = first.state_dict(), second.state_dict()
    for name, axis in first.concept_axes().items():
        for place, source in enumerate(order):
            if place not in anew:
                theirs[name].select(axis, place).copy_(mine[name].select(axis, source))
    x = torch.randn(6, 3, 8, 8)
    found = recruitment({"a": first, "b": second}, {"a": x, "b": x}, min_cosine=0.95)
    matched = found.concepts["b"].tolist()
    for place, source in enumerate(order):
        if place not in anew:
            assert matched[source] == place
    assert matched[order[0]] == matched[order[5]] == -1
    assert len(found.frequency) == 10
    assert sorted(matched[8:]) == sorted(anew)
    assert found.concepts["a"].tolist()[8:] == [-1, -1]
    assert found.jaccard.loc["a", "b"] == pytest.approx(6 / 10)
    assert found.unique == {"a": sorted(order[i] for i in anew), "b": [8, 9]}


def test_what_is_refused(channels):
    with pytest.raises(ValueError, match="min_frequency"):
        recruitment(channels(6, PLANE), {1: using(0)}, min_frequency=0.0)
    with pytest.raises(ValueError, match="the same values"):
        recruitment({1: channels(6, PLANE)}, {2: using(0)})
    with pytest.raises(TypeError, match="mapping from values of a parameter to activations, .* got Tensor"):
        recruitment(channels(6, PLANE), using(0))
