"""Dead concepts: counted in fields, known as of the last refresh, kept through a checkpoint."""

from __future__ import annotations

import torch

from neuralop_sae import FourierBasis
from neuralop_sae.codes import ConceptCodes
from neuralop_sae.training.revival import DeadConcepts


def codes(
    n_samples: int, on: list[tuple[int, int]], grid: tuple[int, ...] = (4,), off: tuple[tuple[int, int], ...] = ()
) -> ConceptCodes:
    """Codes of four concepts: pairs (sample, concept) with a code that cancels to a mean of zero, and pairs without."""
    pairs = sorted([*on, *off])
    values = torch.zeros(len(pairs), *grid)
    for row, pair in enumerate(pairs):
        if pair in on:
            values[row].view(-1)[:2] = torch.tensor([1.0, -1.0])
    sample, concept = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    return ConceptCodes(sample, concept, values, n_samples, 4, FourierBasis((3,) * len(grid)))


def test_a_batch_counts_by_its_fields() -> None:
    """Concept 0 is on in one field, 1 in all, 2 has a row whose code is zero, 3 no row."""
    dead = DeadConcepts(4, dead_after=7)
    batch = codes(3, [(1, 0), (0, 1), (1, 1), (2, 1)], off=((2, 2),))
    dead.update(batch)
    assert dead.fields_since_on.tolist() == [0, 0, 3, 3]
    dead.update(codes(2, [(0, 0)]))
    assert dead.fields_since_on.tolist() == [0, 2, 5, 5]
    assert dead.mask().tolist() == [False] * 4
    dead.update(codes(2, []))
    assert dead.fields_since_on.tolist() == [2, 4, 7, 7]
    assert dead.mask().tolist() == [False, False, True, True]
    dead.update(codes(1, [(0, 3)]))
    assert dead.fields_since_on.tolist() == [3, 5, 8, 0]
    assert dead.mask().tolist() == [False, False, True, False]


def test_the_count_does_not_depend_on_the_grid() -> None:
    coarse, fine = DeadConcepts(4, dead_after=3), DeadConcepts(4, dead_after=3)
    for _ in range(2):
        coarse.update(codes(2, [(0, 1)], (3,)))
        fine.update(codes(2, [(0, 1)], (32, 32)))
    assert coarse.fields_since_on.tolist() == fine.fields_since_on.tolist() == [4, 0, 4, 4]


def test_known_is_the_state_of_the_last_refresh() -> None:
    dead = DeadConcepts(4, dead_after=2)
    assert dead.known is None
    dead.update(codes(2, [(0, 1)]))
    assert dead.known is None  # dead, not yet known
    dead.refresh()
    assert dead.known is not None
    assert dead.known.tolist() == [True, False, True, True]
    dead.update(codes(2, [(0, 0), (0, 2), (1, 3)]))
    assert dead.known.tolist() == [True, False, True, True]  # revived, still known as dead
    assert dead.mask().tolist() == [False, True, False, False]
    dead.refresh()
    assert dead.known.tolist() == [False, True, False, False]
    dead.update(codes(1, [(0, 0), (0, 1), (0, 2), (0, 3)]))
    dead.refresh()
    assert dead.known is None


def test_a_resumed_count_goes_on_where_it_stopped() -> None:
    """With what was known then, not with what a refresh would find now."""
    whole = DeadConcepts(4, dead_after=3)
    whole.update(codes(3, [(0, 0)]))
    whole.refresh()
    whole.update(codes(2, [(0, 0), (1, 1)]))
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    resumed = DeadConcepts(4, dead_after=3)
    resumed.load(state)
    for counts in (whole, resumed):
        assert counts.known is not None
        assert counts.known.tolist() == [False, True, True, True]
        assert counts.fields_since_on.tolist() == [0, 0, 5, 5]
    for counts in (whole, resumed):
        counts.update(codes(2, [(0, 3)]))
        counts.refresh()
    assert resumed.known is not None
    assert torch.equal(resumed.known, whole.mask())
    assert resumed.state().keys() == state.keys()
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name


def test_loading_takes_a_copy_and_knows_that_nothing_was_known() -> None:
    dead = DeadConcepts(4, dead_after=3)
    dead.update(codes(3, []))
    dead.refresh()
    fresh = DeadConcepts(4, dead_after=3).state()
    dead.load(fresh)
    assert dead.known is None
    assert dead.fields_since_on.tolist() == [0] * 4
    fresh["dead.fields_since_on"].fill_(9)
    fresh["dead.known"].fill_(True)
    dead.refresh()
    assert dead.known is None


def test_counts_live_on_the_device(device: torch.device) -> None:
    dead = DeadConcepts(4, 3, device)
    batch = codes(3, [(0, 1)])
    dead.update(ConceptCodes(batch.sample.to(device), batch.concept.to(device), batch.values.to(device), 3, 4, batch.basis))
    dead.refresh()
    dead.load({name: tensor.cpu() for name, tensor in dead.state().items()})
    assert dead.known is not None
    assert dead.known.device.type == dead.fields_since_on.device.type == device.type
    assert dead.known.tolist() == [True, False, True, True]
