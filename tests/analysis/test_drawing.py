"""How one field is drawn: scales, contours and lines where values are missing, titles and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralop_sae import FourierBasis, SphericalBasis
from neuralop_sae.analysis.drawing import (
    ColorScale,
    color_bar,
    contour_levels,
    draw_contours,
    draw_field,
    set_title,
    slice_note,
    subplots,
)

NAN, INF = torch.nan, torch.inf
BASES = {"box": (FourierBasis((3, 3)), (9, 12)), "globe": (SphericalBasis((4, 8)), (9, 16))}


def with_a_hole(shape: tuple[int, ...]) -> Tensor:
    field = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    field[0, 2:4], field[4, 5] = NAN, INF
    return field


def test_scales_and_contours_go_by_finite_values() -> None:
    field = torch.tensor([NAN, 0.5, INF, 2.0, -INF])
    assert ColorScale.of(field) == ColorScale.of(torch.tensor([0.5, 2.0]))
    assert ColorScale.of(field, torch.full((3,), NAN), torch.tensor([4.0])) == ColorScale("viridis", 0.0, 4.0)
    assert ColorScale.of(torch.full((3,), NAN)) == ColorScale("viridis", 0.0, 1.0)
    ramp, area = torch.arange(9.0), torch.rand(9, generator=torch.Generator().manual_seed(0))
    holed, its_area = torch.cat([field.new_full((2,), NAN), ramp]), torch.cat([torch.ones(2), area])
    assert contour_levels(holed) == contour_levels(ramp)
    assert contour_levels(holed, its_area) == contour_levels(ramp, area)
    assert contour_levels(torch.full((3,), NAN)) == []


@pytest.mark.parametrize("kind", BASES)
def test_fields_with_holes_have_contours_and_transparent_pixels(kind: str) -> None:
    basis, shape = BASES[kind]
    field = with_a_hole(shape)
    figure, axes = subplots(1, 1)
    image = draw_field(axes[0, 0], field, ColorScale.of(field), basis)
    before = len(axes[0, 0].collections)
    draw_contours(axes[0, 0], field, "black", basis)
    figure.draw_without_rendering()
    (contours,) = axes[0, 0].collections[before:]
    assert any(len(path.vertices) for path in contours.get_paths())
    colors = image.to_rgba(image.get_array())
    assert (colors[..., 3] == 0).any()
    assert len(np.unique(colors[colors[..., 3] > 0], axis=0)) > 2


def test_the_line_behind_a_line_spans_the_scale_by_its_finite_values() -> None:
    scale, values = ColorScale("viridis", 0.0, 2.0), torch.tensor([0.0, 1.0, 2.0])
    _, axes = subplots(1, 2)
    draw_field(axes[0, 0], values, scale, background=torch.tensor([5.0, NAN, 7.0, 6.0]))
    np.testing.assert_allclose(axes[0, 0].lines[0].get_ydata(), [0.0, np.nan, 2.0, 1.0])
    draw_field(axes[0, 1], values, scale, background=torch.full((3,), NAN))
    assert len(axes[0, 1].lines) == 1


def test_lines_say_what_their_axes_are() -> None:
    scale = ColorScale("viridis", 0.0, 1.0)
    figure, axes = subplots(2, 2)
    for ax in axes.flat:
        image = draw_field(ax, torch.rand(5), scale)
    axes[0, 0].set_ylabel("concept 3")
    for some in (axes[0], axes[1, 0]):
        assert color_bar(figure, image, some, "code") is None
    assert [ax.get_xlabel() for ax in axes.flat] == ["", "", *["position / length"] * 2]
    assert [ax.get_ylabel() for ax in axes.flat] == ["concept 3\ncode", "", "code", ""]
    color_bar(figure, image, axes[1, 1], "")
    assert axes[1, 1].get_ylabel() == ""


WORDS = "mean enstrophy of the forecast in the northern hemisphere"


@pytest.mark.parametrize("title", [WORDS, "a_name_without_spaces_" * 4, "W" * 60, "$x^2$ " * 30])
def test_titles_stay_in_their_columns(title: str) -> None:
    figure, axes = subplots(1, 3, 2.6, 2.1)
    for ax in axes.flat:
        ax.plot([0, 1], [0, 1])
        set_title(ax, title, slice_note(3))
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in axes.flat]
    edges = [x for box in boxes for x in (box.x0, box.x1)]
    assert edges == sorted(edges), "titles overlap"
    assert edges[0] >= 0
    assert edges[-1] <= figure.bbox.width
    assert boxes[0].y1 <= figure.bbox.height
    assert axes[0, 0].get_title().replace("\n", "").replace(" ", "").startswith(title.replace(" ", ""))


def test_short_titles_are_one_line() -> None:
    _, axes = subplots(1, 4, 2.6, 2.1)
    set_title(axes[0, 0], "concepts per point (local L0)")
    assert axes[0, 0].get_title() == "concepts per point (local L0)"
    set_title(axes[0, 0], "")
    assert axes[0, 0].get_title() == ""
