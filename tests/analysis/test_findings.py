"""Figures of tables against the numbers in them."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from neuralop_sae import SAEFNO, TopK
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.drawing import INK

PROBES = pd.DataFrame(
    [
        (0, "w", 0, 0.5, 0.25, 0.75, 0.01),
        (0, "s", 0, -0.75, -0.9, -0.5, 0.5),
        (1, "w", 2, 0.9, 0.8, 0.95, 0.01),
        (1, "s", 0, np.nan, np.nan, np.nan, np.nan),
    ],
    columns=["concept", "quantity", "lag", "correlation", "low", "high", "q_value"],
).assign(kind="map")


def test_forest_of_correlations() -> None:
    ax = figures.probes_figure(PROBES).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1: w, lag 2", "0: s", "0: w"]
    spans = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert spans == [[0.8, 0.95], [-0.9, -0.5], [0.25, 0.75]]
    filled, hollow = ax.lines[1:3]
    assert filled.get_xdata().tolist() == [0.9, 0.5]
    assert hollow.get_xdata().tolist() == [-0.75]
    assert hollow.get_markerfacecolor() == "white"
    with pytest.raises(ValueError, match="no correlation to draw"):
        figures.probes_figure(PROBES, [5])


def test_map_of_correlations() -> None:
    ax = figures.probes_map_figure(PROBES, [1, 0]).axes[0]
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.9, 0.5], [np.nan, -0.75]])
    halo, cross = ax.lines
    assert halo.get_xydata().tolist() == cross.get_xydata().tolist() == [[1, 1]]
    assert (halo.get_color(), max(to_rgb(cross.get_color())) < 0.1) == ("white", True)
    assert cross.get_color() != INK, "the cross would take the colour of a page's text, which may be white"


@pytest.mark.parametrize("name", ["w", "a quantity with a name of seventy letters, such as this one, in kg/m3."])
@pytest.mark.parametrize("n", [1, 3])
def test_names_of_any_length_and_single_rows_are_whole(name: str, n: int) -> None:
    probes = PROBES.head(n).replace({"w": name})
    for figure in (figures.probes_figure(probes), figures.probes_map_figure(probes, [0])):
        figure.draw_without_rendering()
        ax = figure.axes[0]
        for text in (*ax.get_yticklabels(), ax.yaxis.label, ax.xaxis.label, *(other.yaxis.label for other in figure.axes[1:])):
            box = text.get_window_extent()
            assert figure.bbox.contains(box.x0, box.y0), text
            assert figure.bbox.contains(box.x1, box.y1), text
        assert ax.get_window_extent().width > 15
    rows = figures.probes_figure(probes).axes[0]
    low, high = rows.get_ylim()
    assert low <= -0.5
    assert high >= n - 0.5


def test_dose_response_goes_through_the_neutral_dose() -> None:
    rows = [(c, o, d, (d - 1) * c, (d - 1) * c - 1, (d - 1) * c + 1) for c in (1, 2) for o in "ab" for d in (0.0, 2.0)]
    effects = pd.DataFrame(rows, columns=["concept", "outcome", "dose", "effect", "low", "high"])
    figure = figures.dose_response_figure(effects, units={"a": "m/s"})
    assert figure.axes[0].get_ylabel() == "effect (m/s)"
    assert figure.axes[1].lines[3].get_xydata().tolist() == [[0, -2], [1, 0], [2, 2]]
    with pytest.raises(ValueError, match="1 to 7 concepts, got 8"):
        figures.dose_response_figure(pd.concat([effects.assign(concept=c) for c in range(8)]))


@pytest.mark.parametrize(("n_outcomes", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_of_outcomes(n_outcomes, shape) -> None:
    rows = [(0, f"outcome {i}", 0.0, 1.0, 0.5, 1.5) for i in range(n_outcomes)]
    effects = pd.DataFrame(rows, columns=["concept", "outcome", "dose", "effect", "low", "high"])
    figure = figures.dose_response_figure(effects)
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    assert sum(ax.get_visible() for ax in figure.axes) == n_outcomes


def test_drift_of_rollouts() -> None:
    drifts = pd.DataFrame(
        {"rollout": "clean", "quantity": "mass", "step": range(3), "drift": [0.0, 1, 4], "low": 0, "high": 5}
    )
    ax = figures.conservation_figure(drifts, step=0.5, unit="s", units={"mass": "kg"}).axes[0]
    assert ax.lines[1].get_xydata().tolist() == [[0, 0], [0.5, 1], [1, 4]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time of the rollout (s)", "drift (kg)")


def test_curve_and_histogram() -> None:
    ax = figures.fve_figure({4: 0.5, 1: 0.25}, own=4, counted="concepts per sample").axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.25], [4, 0.5]]
    zero, trained, ring = ax.lines[1:]
    assert list(zero.get_ydata()) == [0, 0]
    assert list(trained.get_xdata()) == [4, 4]
    assert ring.get_xydata().tolist() == [[4, 0.5]]
    assert [text.get_text() for text in ax.texts] == ["trained at k = 4"]
    between = figures.fve_figure({1: 0.25, 8: -1.5}, own=3).axes[0]
    assert [list(line.get_xdata()) for line in between.lines[2:]] == [[3, 3]]
    assert between.get_ylim()[0] < -1.5, "the lowest point is cut"
    assert ax.texts[0].get_color() == INK
    many = figures.fve_figure({k: 0.5 for k in range(1, 41)}).axes[0]
    assert many.get_xticks().tolist() == list(range(1, 41))
    names = [label.get_text() for label in many.get_xticklabels()]
    assert [name for name in names if name] == ["1", "2", "4", "7", "12", "20", "32"]
    bars = figures.stability_figure(torch.tensor([0.1, 0.95, 0.97])).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 3
    ax = figures.stability_figure(torch.tensor([0.1, 0.95]), torch.tensor([0.3, 0.5])).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["another run", "chance"]


def test_one_concept_in_vectors() -> None:
    torch.manual_seed(0)
    sae, x = SAEFNO(2, 5, (3, 3), concept_rule=TopK(2)), torch.randn(6, 2, 8, 8)
    codes = sae.eval().encode(x)
    concept = int(codes.concept[0])
    rows = codes.concept == concept
    norms, order = codes.norms()[rows].sort(descending=True)
    best = codes.sample[rows][order].tolist()[: min(2, len(norms))]
    figure = figures.concept_figure(sae, x, concept, inputs=x, n_samples=2)
    panels = figure.axes[2 : 2 + len(best)]
    assert [ax.get_title() for ax in panels] == [f"sample {sample}" for sample in best]
    np.testing.assert_allclose(panels[0].images[0].get_array(), codes.of(concept)[best[0]].detach().numpy(), rtol=1e-5)
    pdf = io.BytesIO()
    figure.savefig(pdf, format="pdf")
    assert pdf.getvalue().startswith(b"%PDF")
    with pytest.raises(ValueError, match="on in none of the 6 samples"):
        figures.concept_figure(SAEFNO(2, 5, (3, 3), concept_rule={"name": "JumpReLU", "threshold": 1e6}), x, 0)
