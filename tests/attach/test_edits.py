"""Edits against closed forms, on codes made by hand: rows, regions, places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.attach.edits import ablate, add, band_filter, clamp, compose, patch, restrict, steer
from neuralop_sae.codes import ConceptCodes

P = 6


def make_codes(values: Tensor, sample: list[int], concept: list[int], n_samples: int = 2, basis: Any = None) -> ConceptCodes:
    basis = basis or ns.FourierBasis((3,) * (values.ndim - 1))
    return ConceptCodes(torch.tensor(sample), torch.tensor(concept), values, n_samples, P, basis)


def example_codes() -> ConceptCodes:
    values = torch.arange(1.0, 4 * 16 + 1).reshape(4, 4, 4)
    return make_codes(values, [0, 0, 1, 1], [1, 3, 3, 5])


def random_codes(*grid: int) -> ConceptCodes:
    """Signed codes in float64; every sample has other concepts on."""
    values = torch.randn(5, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return make_codes(values, [0, 0, 1, 2, 2], [1, 3, 3, 0, 5], 3)


def left_half(*grid: int) -> Tensor:
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[: grid[0] // 2] = True
    return mask


def test_ablate_drops_rows() -> None:
    codes = example_codes()
    for edit in (ablate(3, 0), ablate([3, 0]), ablate(torch.tensor([3, 0]))):
        edited = edit(codes)
        assert edited.concept.tolist() == [1, 5]
        assert edited.sample.tolist() == [0, 1]
        assert torch.equal(edited.values, codes.values[[0, 3]])
        assert edited.n_samples == 2
    assert len(ablate(range(P))(codes).sample) == 0
    assert repr(ablate(3, 5)) == "ablate(3, 5)"


def test_steer_scales_everywhere_or_in_a_region() -> None:
    codes = example_codes()
    assert torch.equal(steer(3, 0.1)(codes).values[[1, 2]], codes.values[[1, 2]] * 0.1)
    assert torch.equal(steer(3, 0.1)(codes).values[[0, 3]], codes.values[[0, 3]])
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, 1] = True
    for region in (mask, mask.float(), mask.double()):
        values = steer([3, 5], scale=0.1, region=region)(codes).values
        assert torch.equal(values[1:], torch.where(mask, codes.values[1:] * 0.1, codes.values[1:]))
        assert torch.equal(values[0], codes.values[0])
        assert values.dtype == codes.values.dtype
    half = steer(1, scale=3.0, region=torch.full((4, 4), 0.5))(codes).values
    torch.testing.assert_close(half[0], 2 * codes.values[0])
    assert len(steer(0, 2.0)(codes).values) == 4  # a concept that is off
    assert repr(steer(7, scale=2.0)) == "steer(7, scale=2)"
    assert repr(steer([1, 2], 0.5, mask)) == "steer((1, 2), scale=0.5, region=<4 x 4>)"


def test_a_region_on_another_grid_is_resampled() -> None:
    codes = example_codes()
    fine = torch.zeros(8, 8)
    fine[0, 0] = 1.0
    values = steer(1, scale=5.0, region=fine)(codes).values[0]  # area: a quarter of the first cell
    assert values[0, 0] == codes.values[0, 0, 0] * 2
    assert torch.equal(values[1:], codes.values[0, 1:])
    values = steer(1, scale=5.0, region=fine.bool())(codes).values[0]  # nearest: every second point of the mask
    assert values[0, 0] == codes.values[0, 0, 0] * 5
    assert torch.equal(values[1:], codes.values[0, 1:])
    coarse = torch.tensor([[True, False], [False, False]])
    values = steer(1, scale=5.0, region=coarse)(codes).values[0]
    factor = torch.ones(4, 4)
    factor[:2, :2] = 5
    assert torch.equal(values, codes.values[0] * factor)
    with pytest.raises(ValueError, match=r"region has shape \(4,\), the codes are on a grid \(4, 4\)"):
        steer(1, 2.0, torch.ones(4))(codes)


@pytest.mark.parametrize("concept", [P, -1, [0, 99]])
def test_concepts_out_of_range(concept: Any) -> None:
    for edit in (ablate(concept), steer(concept, 2.0), clamp(concept, maximum=0), add(concept, 1.0)):
        with pytest.raises(ValueError, match="n_concepts=6"):
            edit(example_codes())


@pytest.mark.parametrize("concept", [True, 1.0, "3", None, [], [1, False], torch.tensor([True])])
def test_concepts_that_are_not_integers(concept: Any) -> None:
    for make in (ablate, steer):
        with pytest.raises(ValueError, match="n_concepts"):
            make(concept)
    with pytest.raises(ValueError, match="n_concepts"):
        ablate()


def test_bad_scales_and_regions() -> None:
    with pytest.raises(ValueError, match="one element"):
        steer(1, torch.ones(2))
    for region in (torch.ones(4, dtype=torch.long), [1.0]):
        with pytest.raises(TypeError, match="bool mask or a float"):
            steer(1, 2.0, region)
    with pytest.raises(TypeError, match="scale is a tensor or an array of numbers; got str"):
        steer(1, "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="value is a tensor or an array of numbers; got str"):
        add(1, "a")


def test_arrays_of_numpy_and_xarray_are_regions_and_maps() -> None:
    codes, mask = random_codes(4, 4), left_half(4, 4)
    number = torch.rand(4, 4, dtype=torch.float64)
    for given in (mask.numpy(), xarray.DataArray(mask.numpy())):
        for make in (lambda region: steer(1, 2.0, region), lambda region: clamp(1, 0.5, region=region)):
            assert torch.equal(make(given)(codes).values, make(mask)(codes).values)
        assert torch.equal(restrict(1, given)(codes).values, restrict(1, mask)(codes).values)
    for array in (number.numpy(), xarray.DataArray(number.numpy())):
        assert torch.equal(add(1, array)(codes).values, add(1, number)(codes).values)
    assert torch.equal(steer(1, np.float32(2))(codes).values, steer(1, 2.0)(codes).values)


def test_a_region_of_its_own_for_each_sample() -> None:
    codes = example_codes()
    region = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    values = steer([1, 3, 5], 3.0, region)(codes).values
    assert torch.equal(values, codes.values * torch.tensor([1.0, 1, 3, 3]).view(4, 1, 1))
    fine = steer([1, 3, 5], 3.0, region.repeat_interleave(2, 1).repeat_interleave(2, 2))(codes).values
    assert torch.equal(fine, values)
    with pytest.raises(ValueError, match="region has weights for 3 samples, the batch has 2"):
        steer(1, 2.0, torch.ones(3, 4, 4))(codes)


def test_clamping_rectified_codes_at_zero_is_ablation() -> None:
    codes = example_codes()
    edited = clamp(3, maximum=0.0)(codes)
    assert torch.equal(edited.to_dense(), ablate(3)(codes).to_dense())
    bounded = clamp(None, minimum=5.0, maximum=20.0)(codes).to_dense()
    assert torch.equal(bounded, codes.to_dense().clamp(5.0, 20.0))  # concepts that were off too
    half = clamp([1, 3], minimum=30.0, region=left_half(4, 4))(codes).to_dense()
    expected = codes.to_dense()
    expected[:, [1, 3], :2] = expected[:, [1, 3], :2].clamp_min(30.0)
    assert torch.equal(half, expected)
    assert repr(clamp(7, maximum=1.5)) == "clamp(7, minimum=None, maximum=1.5)"


@pytest.mark.parametrize(("bounds", "message"), [({}, "needs a bound"), ({"minimum": 2.0, "maximum": 1.0}, "above maximum")])
def test_bounds_that_say_nothing(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clamp(1, **bounds)


def test_add_switches_concepts_on() -> None:
    codes = random_codes(4, 5)
    expected = codes.to_dense()
    expected[:, [1, 2]] += 0.5
    edited = add([2, 1], 0.5)(codes)
    assert torch.equal(edited.to_dense(), expected)
    assert edited.sample.tolist() == sorted(edited.sample.tolist())  # rows stay sorted by sample, then by concept
    assert (edited.sample * P + edited.concept).diff().gt(0).all()
    each = torch.randn(3, 4, 5, dtype=torch.float64)
    assert torch.equal(add(4, each)(codes).of(4), each)
    assert torch.equal(
        add(4, each[0], region=left_half(4, 5))(codes).of(4), each[0].where(left_half(4, 5), 0.0).expand(3, 4, 5)
    )


def test_a_map_to_add_is_resampled_by_the_basis() -> None:
    codes = random_codes(8, 8)
    s, t = (torch.arange(n, dtype=torch.float64) / n for n in (8, 32))
    wave = (2 * torch.pi * t).cos()[:, None].expand(32, 32)
    torch.testing.assert_close(add(4, wave)(codes).of(4)[0], (2 * torch.pi * s).cos()[:, None].expand(8, 8))
    for shape in ((4,), (2, 8, 8), (1, 2, 8, 8)):
        with pytest.raises(ValueError, match="the map to add has shape"):
            add(4, torch.ones(shape))(codes)


@pytest.mark.parametrize("grid", [(9,), (8, 9), (6, 5, 8)])
def test_the_whole_band_is_the_code_and_bands_add_up(grid: tuple[int, ...]) -> None:
    codes = random_codes(*grid)
    torch.testing.assert_close(band_filter(None)(codes).values, codes.values)
    parts = [band_filter(None, high=1.5), band_filter(None, low=1.5)]
    torch.testing.assert_close(sum(part(codes).values for part in parts), codes.values)
    assert torch.equal(band_filter(3, high=1)(codes).values[[0, 3, 4]], codes.values[[0, 3, 4]])


def test_a_wave_passes_its_own_band_only() -> None:
    s = torch.arange(16, dtype=torch.float64) / 16
    slow, fast = ((2 * torch.pi * k * s).sin() for k in (2, 5))
    codes = make_codes((slow + fast)[None], [0], [2], 1)
    for (low, high), kept in {(0, 3): slow, (4, 6): fast, (5, 5): fast, (3, None): fast, (6, 7): 0 * s}.items():
        torch.testing.assert_close(band_filter(2, low, high)(codes).values[0], kept)


def test_degrees_are_filtered_on_the_sphere() -> None:
    basis = ns.SphericalBasis((5, 10))
    coefficients = torch.zeros(5, 5, dtype=torch.complex128)
    coefficients[1, 0], coefficients[4, 3] = 1.0, 2.0 - 1.0j
    codes = make_codes(basis.synthesis(coefficients, (9, 16))[None], [0], [2], 1, basis)
    coefficients[4] = 0
    torch.testing.assert_close(band_filter(2, high=3)(codes).values[0], basis.synthesis(coefficients, (9, 16)))


def test_restrict_keeps_the_inside() -> None:
    codes, inside = random_codes(4, 5), left_half(4, 5)
    edited = restrict(None, inside)(codes)
    assert torch.equal(edited.values, codes.values * inside)
    torch.testing.assert_close(restrict(None, ~inside)(codes).values + edited.values, codes.values)
    smooth = torch.rand(4, 5, dtype=torch.float64)
    torch.testing.assert_close(restrict(3, smooth)(codes).of(3), codes.of(3) * smooth)
    assert torch.equal(restrict(3, smooth)(codes).of(1), codes.of(1))


def test_patching_from_itself_changes_nothing() -> None:
    codes = random_codes(4, 5)
    for concepts in (None, 3, [3, 0]):
        assert torch.equal(patch(concepts, codes)(codes).to_dense(), codes.to_dense())


def test_patch_takes_codes_of_other_samples() -> None:
    codes, source = random_codes(4, 5), random_codes(4, 5)
    source = ConceptCodes(source.sample, source.concept, source.values + 10, 3, P, source.basis)
    everywhere = patch([3, 2], source)(codes).to_dense()
    expected = codes.to_dense()
    expected[:, [2, 3]] = source.to_dense()[:, [2, 3]]
    assert torch.equal(everywhere, expected)
    one = patch(None, source, sample=2)(codes).to_dense()
    assert torch.equal(one, source.to_dense()[[2]].expand(3, -1, -1, -1))
    inside = left_half(4, 5)
    half = patch(0, source, sample=2, region=inside)(codes).of(0)
    assert torch.equal(half, source.of(0)[2].where(inside, codes.of(0)))
    finer = patch(0, source.resample((8, 10)))(codes).of(0)  # what 4 points do not resolve, a larger grid does not get
    torch.testing.assert_close(finer, source.resample((8, 10)).resample((4, 5)).of(0))


def test_patch_of_a_source_that_does_not_fit() -> None:
    codes = random_codes(4, 5)
    with pytest.raises(ValueError, match="sample 3 is out of range: source has samples 0 to 2"):
        patch(1, codes, sample=3)
    with pytest.raises(ValueError, match="n_concepts=6"):
        patch(6, codes)
    with pytest.raises(ValueError, match="source has 2 samples of 6 concepts, the codes 3 of 6"):
        patch(1, example_codes())(codes)


def test_compose_applies_in_order() -> None:
    codes = random_codes(4, 5)
    double, shift = steer([1, 3], 2.0), add(3, 1.0)
    assert torch.equal(compose(shift, double)(codes).to_dense(), double(shift(codes)).to_dense())
    assert not torch.equal(compose(double, shift)(codes).to_dense(), compose(shift, double)(codes).to_dense())
    assert repr(compose(ablate(3), double)) == "compose(ablate(3), steer((1, 3), scale=2))"
    with pytest.raises(TypeError, match="an edit is a function"):
        compose(3)  # type: ignore[arg-type]


def test_edits_keep_gradients() -> None:
    codes, region = random_codes(3, 3), torch.rand(3, 3, dtype=torch.float64)
    edits = [clamp(3, maximum=0.3), add(3, region), band_filter(3, high=1), restrict(3, region), patch(2, codes)]
    for edit in edits:

        def change(values: Tensor, edit: Any = edit) -> Tensor:
            return edit(ConceptCodes(codes.sample, codes.concept, values, 3, P, codes.basis)).to_dense()

        assert torch.autograd.gradcheck(change, codes.values.clone().requires_grad_())


def test_edits_of_no_codes() -> None:
    nothing = make_codes(torch.zeros(0, 4, 5), [], [], 3)
    nothing = ConceptCodes(nothing.sample.long(), nothing.concept.long(), nothing.values, 3, P, nothing.basis)
    for edit in (ablate(1), steer(1, 2.0), clamp(1, maximum=1.0), band_filter(1, high=1), restrict(1, left_half(4, 5))):
        assert len(edit(nothing)) == 0
    assert torch.equal(add(1, 2.0)(nothing).of(1), torch.full((3, 4, 5), 2.0))
