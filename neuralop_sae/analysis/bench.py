"""An operator on the bench: its codes are edited, one concept and one dose at a time, and its outputs compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

from ..attach.arrays import tensor_of
from ..attach.edits import steer
from ..attach.inputs import call_processed
from ..attach.interventions import replace_activation
from ..attach.rewrite import Edit, on_grid
from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..metrics import pearson
from ..models.base import SAE
from .evaluate import ConceptUse
from .replay import Replay

Outcome = Callable[[Tensor], Tensor]
EditOfDose = Callable[[int, float], Edit]


class Run(NamedTuple):
    """One intervention on all samples: the edit of a concept at a dose, its change of the activation times a factor."""

    concept: int
    dose: float
    factor: float = 1.0


class Batch(NamedTuple):
    """A batch with what the operator makes of it: codes of its activation, what they decode to, outcomes."""

    inputs: dict[str, Any]
    codes: ConceptCodes
    written: Tensor
    outcomes: dict[str, Tensor]


class Part(NamedTuple):
    """What a run did to a batch: effect on each outcome ``(B,)``, places ``(n, 3)`` by outcome, sum of the change's energy."""

    effects: dict[str, Tensor]
    places: dict[str, Tensor]
    energy: float


class Measured(NamedTuple):
    """What a run did: effect on each outcome ``(N,)``, energy of the change, rows of the table of places."""

    effects: dict[str, np.ndarray]
    energy: float
    places: list[tuple[Any, ...]]


class Bench:
    """An operator with the codes of its activations, ready for runs. Model, SAE and processor are to be in eval mode.

    Parameters
    ----------
    model, site, sae, data_processor
        As in :func:`~neuralop_sae.analysis.causal.causal_test`.
    edit : callable
        ``(concept, dose) -> edit``.
    outcomes : mapping of str to callable or None
        From name to function of the output; None for its channels.
    regions : mapping of str to Tensor or array_like
        From name to weights over the domain.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str,
        sae: SAE,
        *,
        edit: EditOfDose = steer,
        data_processor: Any = None,
        outcomes: Mapping[str, Outcome] | None = None,
        regions: Mapping[str, Tensor | ArrayLike] | None = None,
    ) -> None:
        self.model, self.site, self.sae, self.edit = model, site, sae, edit
        self.data_processor, self.outcomes = data_processor, outcomes
        self.regions = {name: tensor_of(f"region {name!r}", region) for name, region in (regions or {}).items()}
        self.batches: list[Batch] = []
        self.use = ConceptUse(sae)
        self._energies: dict[Run, float] = {}

    @property
    def n_samples(self) -> int:
        """Samples of all batches."""
        return self.use.n_samples

    def read(self, batches: Iterable[dict[str, Any]]) -> None:
        """Run the operator as it is, keep activations, codes and outcomes."""
        for inputs in batches:
            kept: list[Tensor] = []

            def keep(x: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept.append(x)
                return x

            outcomes = self._outcomes(inputs, keep)
            if len(kept) != 1:
                raise ValueError(f"site {self.site!r} fired {len(kept)} times in a pass: name one call, as in '{self.site}.0'")
            x = kept[0].to(self.sae.dtype)
            codes = self.sae.encode(x)
            self.use.update(codes)
            self.batches.append(Batch(inputs, codes, self.sae.decode(codes, x.shape[2:]), outcomes))
        if not self.batches:
            raise ValueError("inputs hold no samples")

    def _outcomes(self, inputs: dict[str, Any], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Outcomes of the operator with its activation replaced, each ``(B,)`` or ``(B, *grid)`` in float64."""
        with replace_activation(self.model, self.site, function):
            y = predict(self.model, inputs, self.data_processor)
        if self.outcomes is None:
            return {f"channel {i}": y[:, i].double() for i in range(y.shape[1])}
        values = {name: tensor_of(f"outcome {name!r}", outcome(y)) for name, outcome in self.outcomes.items()}
        for name, value in values.items():
            if tuple(value.shape) not in {(len(y),), (len(y), *y.shape[2:])}:
                raise ValueError(
                    f"outcome {name!r} gave {tuple(value.shape)} for outputs {tuple(y.shape)}: one number per sample "
                    f"({len(y)},), or a field {(len(y), *y.shape[2:])}"
                )
        return {name: value.double() for name, value in values.items()}

    def change(self, run: Run, batch: Batch) -> Tensor:
        """What a run adds to the activation of a batch, ``(B, channels, *grid)``."""
        edited = self.edit(run.concept, run.dose)(batch.codes)
        return run.factor * (self.sae.decode(edited, batch.written.shape[2:]) - batch.written)

    def energy(self, run: Run) -> float:
        """Mean over samples of the mean square of the change, summed over channels."""
        if run not in self._energies:
            squares = (self.sae.basis.mean_square(self.change(run, batch)) for batch in self.batches)
            self._energies[run] = sum(float(square.double().sum()) for square in squares) / self.n_samples
        return self._energies[run]

    def measure_all(self, runs: Collection[Run], progress: bool = False) -> dict[Run, Measured]:
        """Effects of many runs. What the operator computes before the site it computes once per batch, not for each."""
        parts: dict[Run, list[Part]] = {run: [] for run in runs}
        with tqdm(total=len(self.batches) * len(parts), desc="causal test", disable=not progress) as bar:
            for batch in self.batches:
                before = self._before_site(batch)
                for run, found in parts.items():
                    with before.give_back():
                        found.append(self._part(run, batch))
                    bar.update()
        return {run: _joined(run, found, self.n_samples) for run, found in parts.items()}

    def _before_site(self, batch: Batch) -> Replay:
        """What the operator computes before the site, if with it the outcomes are the same bits."""
        before = Replay(self.model)
        with before.record() as fire:
            self._outcomes(batch.inputs, fire)
        with before.give_back():
            again = self._outcomes(batch.inputs, lambda x: x)
        if not all(torch.equal(value, batch.outcomes[name]) for name, value in again.items()):
            before.forget()
        return before

    def _part(self, run: Run, batch: Batch) -> Part:
        change = self.change(run, batch)
        outcomes = self._outcomes(batch.inputs, partial(_added, change))
        effects: dict[str, Tensor] = {}
        places: dict[str, Tensor] = {}
        for name, value in outcomes.items():
            difference = value - batch.outcomes[name]
            effects |= _statistics(name, difference, self.sae.basis, self.regions)
            if difference.ndim == self.sae.basis.n_dim + 1:
                places[name] = _places(difference, batch.codes, run.concept)
        return Part(effects, places, float(self.sae.basis.mean_square(change).double().sum()))


def _joined(run: Run, parts: Sequence[Part], n_samples: int) -> Measured:
    effects = {name: torch.cat([part.effects[name] for part in parts]).cpu().numpy() for name in parts[0].effects}
    rows: list[tuple[Any, ...]] = []
    for name in parts[0].places:
        means = torch.cat([part.places[name] for part in parts]).nanmean(0)
        rows.append((run.concept, name, run.dose, *means.tolist()))
    return Measured(effects, sum(part.energy for part in parts) / n_samples, rows)


def predict(model: nn.Module, inputs: Mapping[str, Any], data_processor: Any) -> Tensor:
    """Output ``(B, channels, *grid)`` of an operator for a batch, between the steps of neuralop's data processor. A batch
    of an input without a target gets its input for one, which processors ask for."""
    batch = dict(inputs) if data_processor is None or "x" not in inputs else {"y": inputs["x"], **inputs}
    return call_processed(model, batch, data_processor)[0]


def _added(change: Tensor, x: Tensor) -> Tensor:
    return x + change.to(x)


def _statistics(name: str, change: Tensor, basis: SpectralBasis, regions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The effect on an outcome as numbers of each sample, from its change ``(B,)`` or ``(B, *grid)``."""
    if change.ndim == 1:
        return {name: change}
    area = _area(basis, change)
    weights = {"": area}
    for region, mask in regions.items():
        weights[f" in {region}"] = area * on_grid(mask, change.shape[1:]).to(change)
        if not weights[f" in {region}"].any():
            raise ValueError(f"region {region!r} has no point of the output's grid {tuple(change.shape[1:])}")
    found = {}
    for where, weight in weights.items():
        share = weight / weight.sum()
        found[f"{name}{where}"] = (change * share).flatten(1).sum(1)
        found[f"rms {name}{where}"] = (change.square() * share).flatten(1).sum(1).sqrt()
    return found


def _area(basis: SpectralBasis, field: Tensor) -> Tensor:
    """Shares of the domain, ``(*grid)``: by the basis where its grids have as many axes, else equal."""
    grid = field.shape[1:]
    if len(grid) == basis.n_dim:
        return basis.quadrature(grid, like=field).expand(grid)
    return field.new_full(grid, 1 / grid.numel())


def _places(change: Tensor, codes: ConceptCodes, concept: int) -> Tensor:
    """Mean absolute change inside and outside of where a concept is expressed, and its correlation with the code: ``(n, 3)``
    for the samples in which it is on, NaN where there is no inside or outside."""
    rows = (codes.concept == concept) & codes.expressed()
    size, area = change[codes.sample[rows]].abs(), _area(codes.basis, change)
    code = on_grid(codes.values[rows].abs().to(change), size.shape[1:])
    inside = (code > 0) * area
    means = [(size * part).flatten(1).sum(1) / part.flatten(1).sum(1) for part in (inside, area - inside)]
    correlation = [pearson(a, b, area) for a, b in zip(size, code, strict=True)]
    return torch.stack([*means, size.new_tensor(correlation)], 1)
