"""Does a concept do what it seems to? Its effect on an operator's output, beside that of other concepts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .. import notebook
from ..attach.edits import steer
from ..attach.hooks import eval_mode
from ..attach.inputs import Inputs, iterate_batches, shared_arguments
from ..attach.rewrite import indices
from ..data.labelled import LabelledFields
from ..models.base import SAE
from .bench import Bench, EditOfDose, Measured, Outcome, Run
from .inference import Bootstrap, Series, check_draws, false_discovery, interval

CONTROLS = ("random", "frequency", "norm")


@dataclass(frozen=True)
class CausalTest:
    """What `causal_test` found; see there for the columns.

    Parameters
    ----------
    effects, controls, tests, dose_response, places : pandas.DataFrame
        Effects of the tested concepts at each dose; effects of every control; how the two compare; effect against dose; where
        on the domain the effect is.
    """

    effects: pd.DataFrame
    controls: pd.DataFrame
    tests: pd.DataFrame
    dose_response: pd.DataFrame
    places: pd.DataFrame

    def __repr__(self) -> str:
        tables = ", ".join(f"{field.name}: {len(getattr(self, field.name))} rows" for field in fields(self))
        return f"CausalTest({tables})"

    def _repr_html_(self) -> str:
        return notebook.frame("Effects", self.effects) + notebook.frame("Tests against controls", self.tests)


@torch.no_grad()
def causal_test(
    model: nn.Module,
    site: str,
    sae: SAE,
    inputs: Inputs,
    concepts: int | Iterable[int],
    *,
    edit: EditOfDose = steer,
    doses: Sequence[float] = (0.0, 0.5, 1.5, 2.0),
    neutral: float = 1.0,
    outcomes: Mapping[str, Outcome] | None = None,
    regions: Mapping[str, Tensor | ArrayLike] | None = None,
    controls: str | Sequence[str] = CONTROLS,
    n_controls: int = 19,
    trajectory: Any = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    data_processor: Any = None,
    batch_size: int = 16,
    progress: bool = False,
) -> CausalTest:
    r"""Edit concepts one at a time and measure what becomes of an operator's output.

    With activation x, codes c = encode(x) and edited codes e(c), the operator goes on with ``x + (decode(e(c)) - decode(c))``:
    what the autoencoder does not explain stays. The **effect** on an outcome f is :math:`f(y_{edited}) - f(y_{clean})`, y
    being the operator's output, after the data processor if there is one. Where f is a field, two numbers of each sample
    count: the mean of its change over the domain, under the outcome's name, and the root mean square, under ``"rms name"``.

    Parameters
    ----------
    model, site, sae : nn.Module, str, SAE
        The operator, a site that fires once per pass, and the autoencoder trained on it.
    inputs : Tensor, mapping, iterable or LabelledFields
        As in :func:`neuralop_sae.capture`, or fields of :func:`neuralop_sae.from_xarray`. Activations and codes of
        all of them are held in memory.
    concepts : int or iterable of int
        Which to test.
    edit : callable, optional
        ``(concept, dose) -> edit``. By default :func:`neuralop_sae.steer`: the dose is the factor on the code, 0 ablates.
    doses, neutral : sequence of float, float, optional
        Doses, and the one at which the edit changes nothing. Controls are run at the first dose.
    outcomes : mapping of str to callable, optional
        From name to function of the output ``(B, channels, *grid)``, to numbers ``(B,)`` or a field ``(B, *grid)``. By default
        the channels of the output, ``"channel 0"`` and so on.
    regions : mapping of str to Tensor or array_like, optional
        From name to weights ``(*grid)``, bool or float: the effect on fields is also taken over each, as ``"name in region"``.
    controls : {"random", "frequency", "norm"} or sequence of these, optional
        Other concepts, among those that are on in these inputs: drawn at random; the nearest in the share of samples in which
        they are on; the nearest in decoded energy, their change of the activation scaled so that its energy over all samples
        is the tested concept's.
    n_controls : int, optional
        Controls of each kind. No p-value, and so no q-value, is below ``1 / (n_controls + 1)``.
    trajectory : array_like, optional
        ``(N,)``: of which trajectory each sample is; whole ones are resampled. By default what the fields
        of :func:`neuralop_sae.from_xarray` know; else samples are independent.
    n_bootstrap, confidence, seed : int, float, int, optional
        Of the intervals; the seed also draws the random controls.
    data_processor : DataProcessor, optional
        neuralop's, in eval mode.
    batch_size : int, optional
        For a tensor or a mapping. No result depends on it.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    CausalTest
        ``effects``, by concept, outcome and dose: ``effect`` (mean over samples), its bootstrap interval ``low`` to ``high``,
        ``energy`` (mean square of the change of the activation, summed over channels, in its units) and
        ``effect_per_energy``. ``controls``: the same of each control, with the ``tested`` concept and the ``kind``. ``tests``,
        by concept, outcome and kind, at the first dose: ``effect`` with ``low`` and ``high``, mean and standard deviation of
        the controls' effects, ``p_value`` (the share of concept and controls whose effect is at least as large in absolute
        value) and ``q_value`` (Benjamini and Hochberg's over the tested concepts, by outcome and kind). ``dose_response``:
        least-squares ``slope`` of the mean effect on the dose and their Spearman correlation ``monotonicity``, the neutral
        dose with its effect of zero included; an rms grows to both sides of it. ``places``, for fields, by concept, outcome
        and dose: mean absolute change ``inside`` and ``outside`` of where the concept's code is not zero, and ``correlation``
        of the absolute change with the absolute code over the domain; means over the samples in which it is on.

    Notes
    -----
    What the operator's modules compute before the site they compute once per batch and give back for every edit. Where
    this does not give the same bits, as in an operator that works in place, passes are run whole.

    Raises
    ------
    ValueError
        If a concept, control or dose is not known or not on, there are too few controls, or an outcome has a wrong shape.
    """
    check_draws(confidence, n_bootstrap=n_bootstrap)
    tested = indices(concepts)
    sae.check_concepts(tested)
    kinds = (controls,) if isinstance(controls, str) else tuple(controls)
    if unknown := [kind for kind in kinds if kind not in CONTROLS]:
        raise ValueError(f"unknown controls {unknown}; known: {', '.join(CONTROLS)}")
    if trajectory is None and isinstance(inputs, LabelledFields):
        trajectory = inputs.trajectory
    if not doses or neutral in doses:
        raise ValueError(f"doses are those that change something: at least one, without neutral={neutral}; got {tuple(doses)}")
    with ExitStack() as stack:
        processors = [data_processor] if isinstance(data_processor, nn.Module) else []
        stack.enter_context(eval_mode(model, sae, *processors))
        bench = Bench(model, site, sae, edit=edit, data_processor=data_processor, outcomes=outcomes, regions=regions)
        bench.read(iterate_batches(inputs, batch_size, shared_arguments(model)))
        blocks = Series.of(bench.n_samples, trajectory, None).trajectory
        rng = np.random.default_rng(seed)
        chosen = _choose_controls(bench, tested, kinds, n_controls, doses[0], rng)
        runs = [Run(concept, dose) for concept in tested for dose in doses]
        wanted = dict.fromkeys([*runs, *(run for _, _, run in chosen)])
        found = bench.measure_all(wanted, progress)
        places = [place for run in runs for place in found[run].places]
    bootstrap = Bootstrap(blocks, 1, n_bootstrap, rng)
    effects = pd.concat([_effects(run, found[run], bootstrap, confidence) for run in runs], ignore_index=True)
    control_rows = [
        _effects(run, found[run], bootstrap, confidence).assign(tested=concept, kind=kind) for concept, kind, run in chosen
    ]
    control_table = pd.concat(control_rows, ignore_index=True) if control_rows else effects[:0].assign(tested=0, kind="")
    return CausalTest(
        effects,
        control_table,
        _tests(effects[effects.dose == doses[0]], control_table),
        _dose_response(effects, neutral),
        pd.DataFrame(places, columns=["concept", "outcome", "dose", "inside", "outside", "correlation"]),
    )


def _choose_controls(
    bench: Bench, tested: Sequence[int], kinds: Sequence[str], n: int, dose: float, rng: np.random.Generator
) -> list[tuple[int, str, Run]]:
    """Tested concept, kind and run of each control."""
    frequency, energy = bench.use.frequency().numpy(), bench.use.energy.numpy()
    living = np.flatnonzero(energy > 0)
    if off := sorted(set(tested) - set(living.tolist())):
        raise ValueError(f"concepts {off} are off in all {bench.n_samples} inputs: an edit of theirs tells nothing")
    if kinds and len(living) <= n:
        raise ValueError(f"n_controls={n}, but only {len(living) - 1} other concepts are on in these inputs: take fewer")
    chosen = []
    for concept in tested:
        others = rng.permutation(living[living != concept])  # so that ties are broken at random
        distances = {
            "random": np.zeros(len(others)),
            "frequency": np.abs(frequency[others] - frequency[concept]),
            "norm": np.abs(np.log(energy[others] / energy[concept])),
        }
        for kind in kinds:
            for other in others[np.argsort(distances[kind], kind="stable")[:n]].tolist():
                run = Run(other, dose)
                if kind == "norm" and (removed := bench.energy(run)):
                    run = run._replace(factor=(bench.energy(Run(concept, dose)) / removed) ** 0.5)
                chosen.append((concept, kind, run))
    return chosen


def _effects(run: Run, found: Measured, bootstrap: Bootstrap, confidence: float) -> pd.DataFrame:
    """Rows of the table of effects: means over samples, with their intervals."""
    rows = []
    for outcome, effect in found.effects.items():
        sums, sizes = (bootstrap.of_samples(values[:, None])[1:, 0] for values in (effect, np.ones_like(effect)))
        low, high = interval(sums / sizes, confidence, bootstrap.n_blocks)
        per_energy = effect.mean() / found.energy if found.energy else np.nan
        rows.append((run.concept, outcome, run.dose, effect.mean(), float(low), float(high), found.energy, per_energy))
    columns = ["concept", "outcome", "dose", "effect", "low", "high", "energy", "effect_per_energy"]
    return pd.DataFrame(rows, columns=columns)


def _tests(effects: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Each effect beside those of its controls."""
    rows = []
    for (concept, outcome, kind), group in controls.groupby(["tested", "outcome", "kind"], sort=False):
        own = effects[(effects.concept == concept) & (effects.outcome == outcome)].iloc[0]
        as_large = int((group.effect.abs() >= abs(own.effect)).sum())
        p_value = (1 + as_large) / (1 + len(group))
        rows.append((concept, outcome, kind, own.effect, own.low, own.high, group.effect.mean(), group.effect.std(), p_value))
    columns = ["concept", "outcome", "kind", "effect", "low", "high", "control_mean", "control_std", "p_value"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(q_value=table.groupby(["outcome", "kind"]).p_value.transform(false_discovery))


def _dose_response(effects: pd.DataFrame, neutral: float) -> pd.DataFrame:
    rows = []
    for (concept, outcome), group in effects.groupby(["concept", "outcome"], sort=False):
        doses, means = np.append(group.dose, neutral), np.append(group.effect, 0.0)
        constant = np.ptp(means) == 0
        monotonicity = np.nan if constant else float(scipy.stats.spearmanr(doses, means).statistic)
        rows.append((concept, outcome, float(np.polyfit(doses, means, 1)[0]), monotonicity))
    return pd.DataFrame(rows, columns=["concept", "outcome", "slope", "monotonicity"])
