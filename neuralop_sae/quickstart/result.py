"""What a run of the quickstart found: numbers, figures, the report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from torch import Tensor, nn

from ..analysis import figures
from ..analysis.evaluate import code_consistency, evaluate
from ..analysis.faithfulness import faithfulness
from ..analysis.report import report
from ..analysis.summaries import codes_of_samples, strongest_concepts
from ..metrics import pearson
from ..models.spectral import SpectralSAE
from ..training.trainer import TrainingHistory
from .operators import predict
from .problems import Problem, Splits


@dataclass(frozen=True)
class Result:
    """A run's data, models and activations ("train", and held out "coarse" and "fine")."""

    problem: Problem
    splits: Splits
    operator: nn.Module
    processor: DefaultDataProcessor
    activations: dict[str, Tensor]
    sae: SpectralSAE
    history: TrainingHistory

    @cached_property
    def _inputs(self) -> Tensor:
        """The channel of the held-out inputs that pictures show, ``(N, 1, *grid)``."""
        return self.splits.coarse.x[:, self.problem.pictured, None]

    def metrics(self) -> dict[str, Any]:
        """Numbers on held-out data."""
        coarse, fine, held_out = self.activations["coarse"], self.activations["fine"], self.splits.coarse
        numbers: dict[str, Any] = {
            **evaluate(self.sae, coarse),
            **faithfulness(
                self.operator,
                self.problem.site,
                self.sae,
                {"x": held_out.x, "y": held_out.y},
                data_processor=self.processor,
            ),
            **code_consistency(self.sae, coarse, fine),
        }
        area = self.sae.basis.quadrature(coarse.shape[2:], like=coarse)
        numbers["activation_consistency"] = pearson(coarse, self.sae.basis.restrict(fine, coarse.shape[2:]), area)
        numbers[f"{self.problem.operator_name.lower()}_relative_l2"] = numbers["loss_clean"]
        return numbers

    def figures(self) -> dict[str, Any]:
        """From name to figure."""
        sae, coarse = self.sae, self.activations["coarse"]
        samples = list(range(min(4, len(coarse))))
        codes = codes_of_samples(sae, coarse, samples)
        codes_fine = codes_of_samples(sae, self.activations["fine"], samples[:1])
        concepts = [int(c) for c in strongest_concepts(codes, sae, min(6, sae.n_concepts))[0]]
        inputs = self._inputs[: len(samples)]
        with torch.no_grad():
            reconstruction = sae(coarse[:1].to(sae.mean.device)).reconstruction.cpu()
        return {
            "fields": self._fields(),
            "code_maps": figures.code_maps_figure(codes, concepts, samples, inputs),
            "atoms": figures.atoms_figure(sae, concepts, coarse.shape[2:]),
            "spectra": figures.spectra_figure(sae, concepts),
            "reconstruction": figures.reconstruction_figure(coarse[:1], reconstruction, basis=sae.basis),
            "resolution": figures.resolution_figure(codes.keep(codes.sample == 0), codes_fine, concepts[:3], 0),
            "dominance": figures.dominance_figure(codes, sae, concepts, samples, inputs),
            "training": figures.history_figure(self.history.rows),
        }

    def _fields(self) -> Any:
        """Input, truth, prediction and activation of one sample."""
        shown, sample = self.problem.pictured, self.splits.coarse
        before, truth, predicted = self.problem.captions()
        prediction = predict(self.operator, self.processor, sample.x[:1], self.sae.mean.device)[0]
        fields = {
            before: sample.x[0, shown],
            truth: sample.y[0, shown],
            predicted: prediction[shown],
            f"activation of {self.problem.site}": self.activations["coarse"][0],
        }
        compared = (before, truth, predicted) if self.problem.inputs == self.problem.outputs else (truth, predicted)
        return figures.fields_figure(fields, basis=self.sae.basis, shared=[compared])

    def report(self, path: Path, metrics: dict[str, Any]) -> None:
        """Write the page."""
        problem = self.problem
        n_parameters = sum(parameter.numel() for parameter in self.operator.parameters())
        sizes = f"{problem.n_layers} layers, {problem.hidden_channels} channels, {n_parameters:,} parameters"
        report(
            self.sae,
            self.activations["coarse"],
            path=path,
            title=f"Concepts of an {problem.operator_name} on {problem.title}: {problem.site}",
            inputs=self._inputs,
            metrics=metrics,
            history=self.history.rows,
            high_resolution=self.activations["fine"],
            model_card={
                "operator": f"{problem.operator_name}, {sizes}",
                "data": self.splits.name,
                "site": problem.site,
                "seed": problem.seed,
                "command": f"neuralop-sae quickstart --problem {problem.key}",
            },
        )
