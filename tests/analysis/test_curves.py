"""What figures of numbers draw against the numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from neuralop_sae.analysis import curves, summaries
from neuralop_sae.layers.concept_rules import TopK
from neuralop_sae.models import SAEFNO, SAESFNO
from neuralop_sae.models.base import SAE


@pytest.fixture(scope="module")
def sae() -> SAEFNO:
    torch.manual_seed(0)
    return SAEFNO(3, 10, (5, 5), concept_rule=TopK(4)).eval()


def sphere() -> SAESFNO:
    torch.manual_seed(0)
    return SAESFNO(3, 10, (5, 10), concept_rule=TopK(4)).eval()


def test_usage_marks_dead_concepts_and_where_90_percent_are() -> None:
    frequency, share = torch.tensor([0.5, 0.0, 1.0, 0.0]), torch.tensor([0.15, 0.0, 0.85, 0.0])
    figure = curves.usage_figure(frequency, share)
    often, spread = figure.axes
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["2 concepts\ncarry 90 %"]
    assert often.get_xlabel() == "concept, most frequent first\n(hatched: 2 dead)"
    steps, hatched = often.patches
    np.testing.assert_allclose(steps.get_data().values, [1.0, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(steps.get_data().edges, [0.5, 1.5, 2.5, 3.5, 4.5])
    assert (hatched.get_x(), hatched.get_width()) == (2.5, 2.0)
    np.testing.assert_allclose(spread.lines[0].get_xydata(), [[0, 0], [1, 0.85], [2, 1.0], [3, 1.0], [4, 1.0]])
    figure.draw_without_rendering()
    assert all(tick == int(tick) for ax in figure.axes for tick in ax.get_xticks())


def test_one_concept_may_carry_all() -> None:
    figure = curves.usage_figure(torch.ones(1), torch.ones(1))
    assert [text.get_text() for text in figure.axes[1].texts] == ["1 concept\ncarries 90 %"]
    assert figure.axes[0].get_xlabel() == "concept, most frequent first"
    figure.draw_without_rendering()
    assert all(tick == int(tick) for ax in figure.axes for tick in ax.get_xticks())


def test_history_draws_what_rows_hold() -> None:
    rows = [
        {"step": 0, "loss": 2.0, "note": "start"},
        {"step": 10, "loss": 1.0, "fve": 0.5, "a$b": float("nan")},
    ]
    figure = curves.history_figure(rows)
    shown = {ax.get_title(): ax.lines[0].get_xydata().tolist() for ax in figure.axes if ax.get_visible()}
    assert shown == {"loss": [[0, 2], [10, 1]], "variance explained (FVE)": [[10, 0.5]]}
    never = curves.history_figure([{"step": step, "dead_fraction": 0.0} for step in range(3)])
    assert never.axes[0].get_ylim() == (0.0, 1.0)
    low, high = curves.history_figure([{"step": step, "fve": step - 5.0} for step in range(3)]).axes[0].get_ylim()
    assert low < -5 < 1 < high, "the curve is cut"
    start = [{"step": step, "fve": fve} for step, fve in enumerate((-50.0, -2.0, 0.5))]
    assert curves.history_figure(start).axes[0].get_ylim()[0] == -0.1
    with pytest.raises(ValueError, match="no numbers to draw"):
        curves.history_figure([{"step": 1, "note": "x"}])


def test_spectra_of_many_concepts_are_a_map_of_gains(sae: SAEFNO) -> None:
    ax = curves.spectra_figure(sae, range(9)).axes[0]
    np.testing.assert_allclose(
        np.asarray(ax.images[0].get_array()), summaries.atom_spectra(sae, range(9)).gain().T.numpy(), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "label"), [(lambda: SAEFNO(3, 10, (5, 5)), "wavenumber (cycles per domain)"), (sphere, "degree l")]
)
def test_axes_of_spectra_say_what_the_basis_counts(make: Callable[[], SAE], label: str) -> None:
    model = make()
    assert curves.spectra_figure(model, [0, 1]).axes[0].get_xlabel() == label
    assert curves.spectra_figure(model, range(9)).axes[0].get_ylabel().replace("\n", " ") == label


def test_spectra_on_the_sphere_are_by_degree() -> None:
    line = curves.spectra_figure(sphere(), [3]).axes[0].lines[1]
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(line.get_ydata(), summaries.atom_spectra(sphere(), [3]).gain()[0].numpy())


def test_energy_of_fields_by_wavenumber() -> None:
    s = torch.arange(16, dtype=torch.float64) / 16
    two, five = (torch.sin(2 * torch.pi * k * s).expand(16, 16) for k in (2, 5))
    fields = {"wave": torch.stack([two, two]) + 7, "both": two + 2 * five, "coarse": two[::2, ::2]}
    figure = curves.energy_figure(fields, SAEFNO(3, 10, (5, 5), concept_rule=TopK(4)).basis)
    ax = figure.axes[0]
    wave, both, coarse = ({int(k): share for k, share in line.get_xydata() if share > 1e-9} for line in ax.lines)
    assert wave == pytest.approx({2: 1.0})
    assert both == pytest.approx({2: 0.2, 5: 0.8})
    assert coarse == pytest.approx({2: 1.0})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["wave", "both", "coarse"]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "1 to 7 fields, got 0"),
        ({"flat": torch.ones(2, 17, 32)}, "'flat' is constant"),
        ({"off": torch.zeros(17, 32)}, "'off'"),
    ],
)
def test_fields_without_a_spectrum_are_refused(fields: dict[str, torch.Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        curves.energy_figure(fields, sphere().basis)
