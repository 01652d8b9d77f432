"""Rows and slots."""

from __future__ import annotations

import pytest
import torch

from neuralop_sae.layers import Selection

MASKS = {
    "ragged": [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]],
    "even": [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]],
    "first short": [[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]],
    "none": [[0, 0, 0, 0]] * 3,
    "last empty": [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]],
}


@pytest.mark.parametrize("name", MASKS)
def test_slots_hold_the_rows_of_each_sample(name: str) -> None:
    mask = torch.tensor(MASKS[name], dtype=torch.bool)
    selection = Selection.from_mask(mask)
    assert torch.equal(selection.mask(), mask)
    assert len(selection) == int(mask.sum())
    assert selection.width == int(mask.sum(1).max())
    rows = torch.randn(len(selection), 2, 3, requires_grad=True)
    slots = selection.to_slots(rows)
    assert slots.shape == (3, selection.width, 2, 3)
    for b in range(3):
        mine = rows[selection.sample == b]
        assert torch.equal(slots[b, : len(mine)], mine)
        assert not slots[b, len(mine) :].any()
    assert torch.equal(selection.to_rows(slots), rows)


def test_pairs_are_sorted_by_sample_then_concept() -> None:
    selection = Selection.from_mask(torch.tensor(MASKS["ragged"], dtype=torch.bool))
    assert list(zip(selection.sample.tolist(), selection.concept.tolist(), strict=True)) == [(0, 0), (0, 2), (0, 3), (2, 1)]


def test_slots_pass_gradients_to_their_rows() -> None:
    selection = Selection.from_mask(torch.tensor(MASKS["ragged"], dtype=torch.bool))
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(selection.to_slots, (rows,))
    slots = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(selection.to_rows, (slots,))


INDICES = {
    "unsorted": [[2, 0], [3, 1], [0, 3]],
    "one each": [[3], [3], [0]],
    "all": [[3, 1, 0, 2]] * 3,
    "no concept": [[], [], []],
    "no sample": [],
}


@pytest.mark.parametrize("name", INDICES)
def test_selection_of_equally_many_concepts_is_that_of_its_mask(name: str) -> None:
    """The same pairs in the same order, and the same slots, without counting."""
    k = len(INDICES[name][0]) if INDICES[name] else 2
    index = torch.tensor(INDICES[name], dtype=torch.int64).reshape(-1, k) if k else torch.zeros(3, 0, dtype=torch.int64)
    selection = Selection.from_index(index, 4)
    mask = torch.zeros(len(index), 4, dtype=torch.bool).scatter(1, index, True)
    counted = Selection.from_mask(mask)
    assert (selection.every, counted.every) == (k, None)
    assert (selection.n_samples, selection.n_concepts) == (len(index), 4)
    assert torch.equal(selection.mask(), mask)
    assert torch.equal(selection.sample, counted.sample)
    assert torch.equal(selection.concept, counted.concept)
    assert len(selection) == len(counted) == index.numel()
    assert selection.width == k
    rows = torch.randn(len(selection), 2)
    slots = selection.to_slots(rows)
    assert slots.shape == (len(index), k, 2)
    if len(index):
        assert torch.equal(slots, counted.to_slots(rows))
    assert torch.equal(selection.to_rows(slots), rows)


def test_slots_of_equally_many_concepts_are_views() -> None:
    selection = Selection.from_index(torch.tensor(INDICES["unsorted"]), 4)
    rows = torch.randn(6, 2)
    assert selection.to_slots(rows).data_ptr() == rows.data_ptr()
    assert selection.to_rows(selection.to_slots(rows)).data_ptr() == rows.data_ptr()


def all_index(n_samples: int, k: int) -> torch.Tensor:
    return torch.stack([torch.randperm(6)[:k] for _ in range(n_samples)])


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("n_samples", [1, 2, 3, 6, 7])
def test_split_covers_every_sample_once(n_samples: int, k: int) -> None:
    """Also in sizes that do not divide the number of samples."""
    selection = Selection.from_index(all_index(7, k), 6)
    parts = list(selection.split(n_samples))
    assert [b for samples, _ in parts for b in range(samples.start, samples.stop)] == list(range(7))
    assert [samples.stop - samples.start for samples, _ in parts[:-1]] == [n_samples] * (len(parts) - 1)
    rows = torch.randn(len(selection), 2)
    taken = []
    for samples, part in parts:
        assert (part.n_samples, part.n_concepts, part.every) == (samples.stop - samples.start, 6, k)
        assert torch.equal(part.mask(), selection.mask()[samples])
        mine = rows[(selection.sample >= samples.start) & (selection.sample < samples.stop)]
        assert torch.equal(part.to_slots(mine), selection.to_slots(rows)[samples])
        taken.append(torch.stack([part.sample + samples.start, part.concept]))
    assert torch.equal(torch.cat(taken, 1), torch.stack([selection.sample, selection.concept]))


def test_split_parts_have_a_layout_of_their_own() -> None:
    """The layout is cached: that of the whole must not be that of a part."""
    selection = Selection.from_index(all_index(5, 2), 6)
    assert selection.width == 2
    assert selection.to_slots(torch.randn(10, 3)).shape == (5, 2, 3)
    assert [part.to_slots(torch.randn(len(part), 3)).shape[0] for _, part in selection.split(2)] == [2, 2, 1]


@pytest.mark.parametrize("n_samples", [3, 4, 100])
def test_split_of_all_samples_is_the_selection_itself(n_samples: int) -> None:
    selection = Selection.from_index(torch.tensor(INDICES["unsorted"]), 4)
    ((samples, part),) = selection.split(n_samples)
    assert samples == slice(0, 3)
    assert part is selection


@pytest.mark.parametrize("name", MASKS)
def test_split_leaves_samples_of_unknown_size_together(name: str) -> None:
    selection = Selection.from_mask(torch.tensor(MASKS[name], dtype=torch.bool))
    ((samples, part),) = selection.split(1)
    assert samples == slice(0, 3)
    assert part is selection


def test_split_of_nothing() -> None:
    no_concept = Selection.from_index(torch.zeros(3, 0, dtype=torch.int64), 4)
    assert [(samples, len(part), part.n_samples) for samples, part in no_concept.split(2)] == [
        (slice(0, 2), 0, 2),
        (slice(2, 3), 0, 1),
    ]
    no_sample = Selection.from_index(torch.zeros(0, 2, dtype=torch.int64), 4)
    ((samples, part),) = no_sample.split(1)
    assert samples == slice(0, 0)
    assert part is no_sample
