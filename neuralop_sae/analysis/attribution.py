"""Which concepts an output owes its value to: gradients times codes, and how far ablation agrees with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import notebook
from ..attach.hooks import eval_mode, forget_inference_transforms
from ..attach.inputs import Inputs, iterate_batches, shared_arguments
from ..attach.interventions import splice
from ..attach.rewrite import indices
from ..codes import ConceptCodes
from ..models.base import SAE
from .bench import Bench, Run, predict

Functional = Callable[[Tensor], Tensor]
METHODS = ("gradient_times_code", "integrated_gradients")


@dataclass(frozen=True)
class Attribution:
    """What `attribute` found: a row for each concept that is on in a sample.

    Parameters
    ----------
    sample, concept : Tensor
        ``(n,)``, int64.
    values : Tensor
        ``(n,)`` in float64: how much of the functional's value in the sample is owed to the concept, in its units.
    n_samples, n_concepts : int
        Sizes.
    """

    sample: Tensor
    concept: Tensor
    values: Tensor
    n_samples: int
    n_concepts: int

    def __repr__(self) -> str:
        return f"Attribution({len(self.concept.unique())} of {self.n_concepts} concepts, {self.n_samples} samples)"

    def _repr_html_(self) -> str:
        return notebook.frame(f"Attribution over {self.n_samples} samples", self.table())

    def to_dense(self) -> Tensor:
        """``(n_samples, n_concepts)``, zero where a concept is off."""
        dense = self.values.new_zeros(self.n_samples, self.n_concepts)
        return dense.index_put((self.sample, self.concept), self.values)

    def table(self) -> pd.DataFrame:
        """A row for each concept that is on somewhere, the largest first: ``attribution`` (mean over all samples),
        ``magnitude`` (mean of its absolute value, by which rows are sorted) and ``frequency`` (share of samples it is on)."""
        rows = pd.DataFrame({"concept": self.concept, "attribution": self.values, "magnitude": self.values.abs()})
        groups = rows.groupby("concept")
        sums = groups[["attribution", "magnitude"]].sum().assign(frequency=groups.size()) / self.n_samples
        return sums.sort_values("magnitude", ascending=False, kind="stable").reset_index()


def attribute(
    model: nn.Module,
    site: str,
    sae: SAE,
    inputs: Inputs,
    functional: Functional,
    *,
    method: Literal["gradient_times_code", "integrated_gradients"] = "gradient_times_code",
    n_steps: int = 16,
    data_processor: Any = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Attribution:
    r"""Attribute a functional of an operator's output to the concepts at a site.

    With F the functional as a function of the codes z, what the autoencoder does not explain held fixed,

    .. math:: \mathrm{attribution}_c = \int_\Omega \frac{\delta F}{\delta z_c}(s)\, z_c(s)\, ds

    is what F owes to concept c to first order: F minus F without c, exact where everything behind the site is linear. (The
    gradient with respect to values on the grid holds the quadrature weights of the integral, so that the sum over grid
    points of gradient times code is this integral.) ``"integrated_gradients"`` takes the mean of the gradient along ``t z``, t
    from 0 to 1, all concepts together: attributions of a sample then sum to F minus F with all concepts off, up to the error
    of the midpoint rule in t.

    Parameters
    ----------
    model, site, sae : nn.Module, str, SAE
        The operator, a site that fires once per pass, and the autoencoder trained on it.
    inputs : Tensor, mapping, iterable or LabelledFields
        As in :func:`neuralop_sae.capture`, or fields of :func:`neuralop_sae.from_xarray`.
    functional : callable
        Output ``(B, channels, *grid)``, after the data processor if there is one, -> one number per sample ``(B,)``; each may
        depend on its own sample only.
    method : {"gradient_times_code", "integrated_gradients"}, optional
        See above.
    n_steps : int, optional
        Points in t.
    data_processor : DataProcessor, optional
        neuralop's, in eval mode.
    batch_size : int, optional
        For a tensor or a mapping.
    progress : bool, optional
        Whether to show a progress bar over batches.

    Returns
    -------
    Attribution
        On the CPU.

    Raises
    ------
    ValueError
        If the method or site is unknown, or the functional has not ``(B,)``.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; got {n_steps}")
    times = [1.0] if method == "gradient_times_code" else [(step + 0.5) / n_steps for step in range(n_steps)]
    parts: list[tuple[ConceptCodes, Tensor]] = []
    forget_inference_transforms(model)
    with ExitStack() as stack:
        processors = [data_processor] if isinstance(data_processor, nn.Module) else []
        stack.enter_context(eval_mode(model, *processors))
        stack.enter_context(torch.enable_grad())
        batches = list(iterate_batches(inputs, batch_size, shared_arguments(model)))
        for batch in tqdm(batches, desc="attribution", disable=not progress):
            found = [_gradient_times_code(model, site, sae, batch, functional, data_processor, t) for t in times]
            values = torch.stack([value for _, value in found]).mean(0)
            parts.append((found[0][0], values.cpu()))
    starts = np.cumsum([0, *(codes.n_samples for codes, _ in parts)])
    return Attribution(
        torch.cat([codes.sample.cpu() + int(start) for (codes, _), start in zip(parts, starts, strict=False)]),
        torch.cat([codes.concept.cpu() for codes, _ in parts]),
        torch.cat([values for _, values in parts]),
        int(starts[-1]),
        sae.n_concepts,
    )


def _gradient_times_code(
    model: nn.Module, site: str, sae: SAE, batch: dict[str, Any], functional: Functional, data_processor: Any, time: float
) -> tuple[ConceptCodes, Tensor]:
    """Codes of a batch, and for each row the integral of code times gradient at ``time`` times the codes, ``(n,)``."""
    seen: list[ConceptCodes] = []

    def expose(codes: ConceptCodes) -> ConceptCodes:
        seen.append(replace(codes, values=codes.values.detach().requires_grad_()))
        return replace(codes, values=seen[-1].values * time)

    with splice(model, site, sae, expose):
        y = functional(predict(model, batch, data_processor))
    codes = seen[0]
    if tuple(y.shape) != (codes.n_samples,):
        raise ValueError(f"the functional gave {tuple(y.shape)} for a batch of {codes.n_samples}: one number per sample, (B,)")
    (gradient,) = torch.autograd.grad(y.sum(), codes.values)  # of time * z: time times what is wanted
    return codes, (gradient * codes.values.detach()).double().flatten(1).sum(1) / time


@dataclass(frozen=True)
class AblationCheck:
    """How attributions compare with ablation.

    Parameters
    ----------
    table : pandas.DataFrame
        A row for each concept and sample: ``concept``, ``sample``, ``attributed`` and ``ablated``, the functional minus its
        value with the concept ablated.
    pearson, spearman : float
        Correlations of the two over concepts, of means over samples.
    relative_error : float
        ``|attributed - ablated| / |ablated|`` over all rows.
    """

    table: pd.DataFrame
    pearson: float
    spearman: float
    relative_error: float

    def __repr__(self) -> str:
        numbers = (f"{name}={getattr(self, name):.3g}" for name in ("pearson", "spearman", "relative_error"))
        return f"AblationCheck({', '.join(numbers)})"

    def _repr_html_(self) -> str:
        numbers = {name: getattr(self, name) for name in ("pearson", "spearman", "relative_error")}
        means = self.table.groupby("concept")[["attributed", "ablated"]].mean().reset_index()
        return notebook.facts("Attribution against ablation", numbers) + notebook.frame("Means over samples", means)


@torch.no_grad()
def check_by_ablation(
    attribution: Attribution,
    model: nn.Module,
    site: str,
    sae: SAE,
    inputs: Inputs,
    functional: Functional,
    concepts: int | Iterable[int],
    *,
    data_processor: Any = None,
    batch_size: int = 16,
) -> AblationCheck:
    """Compare attributions with what ablation does, concept by concept.

    Parameters
    ----------
    attribution : Attribution
        What :func:`attribute` found.
    model, site, sae, inputs, functional, data_processor, batch_size
        As they were given to it.
    concepts : int or iterable of int
        Which concepts to ablate, at least two for a correlation, three for one that tells something.

    Returns
    -------
    AblationCheck
        With NaN for a correlation that is not defined.

    Raises
    ------
    ValueError
        If a concept is unknown, or the inputs are not as many as those of the attribution.
    """
    checked = indices(concepts)
    sae.check_concepts(checked)
    processors = [data_processor] if isinstance(data_processor, nn.Module) else []
    with eval_mode(model, sae, *processors):
        bench = Bench(model, site, sae, data_processor=data_processor, outcomes={"functional": functional})
        bench.read(iterate_batches(inputs, batch_size, shared_arguments(model)))
        if bench.n_samples != attribution.n_samples:
            raise ValueError(f"the attribution is of {attribution.n_samples} samples, the inputs are {bench.n_samples}")
        runs = [Run(concept, 0.0) for concept in checked]
        measured = bench.measure_all(runs)
        ablated = np.stack([-measured[run].effects["functional"] for run in runs])
    attributed = attribution.to_dense()[:, list(checked)].T.numpy()
    index = pd.MultiIndex.from_product([checked, range(bench.n_samples)], names=["concept", "sample"])
    table = pd.DataFrame({"attributed": attributed.ravel(), "ablated": ablated.ravel()}, index=index).reset_index()
    means = attributed.mean(1), ablated.mean(1)
    defined = len(checked) > 1 and all(np.ptp(mean) > 0 for mean in means)
    return AblationCheck(
        table,
        float(scipy.stats.pearsonr(*means).statistic) if defined else float("nan"),
        float(scipy.stats.spearmanr(*means).statistic) if defined else float("nan"),
        float(np.linalg.norm(attributed - ablated) / (np.linalg.norm(ablated) or np.nan)),
    )
