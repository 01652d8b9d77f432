"""How well a sparse autoencoder describes activations: fidelity, sparsity, use of its concepts, resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..attach.capture import eval_mode
from ..codes import ConceptCodes
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..data.store import ActivationStore
from ..metrics import FieldStatistics, energy_quantile_count, participation, usage_entropy
from ..models.base import SAE


@torch.no_grad()
def evaluate(
    sae: SAE,
    activations: Tensor | IndexedActivations | ActivationStore,
    *,
    prefixes: Sequence[int] = (),
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, float]:
    """Metrics of a model on held-out activations, in eval mode.

    Parameters
    ----------
    sae : SAE
        The model; its training flags are restored.
    activations : Tensor or store
        ``(N, channels, *grid)``, as in :func:`~neuralop_sae.train`.
    prefixes : sequence of int
        Sizes of nested dictionaries (:class:`~neuralop_sae.TrainingConfig`), whose own ``fve`` is told as ``fve_first_32``.
    batch_size : int
        Fields at a time. No metric depends on it.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict
        ``fve`` (fraction of variance explained, mean per channel, pooled in float64), ``relative_l2``, ``shrinkage``
        (norm of the reconstruction over norm of the field), ``l0`` (concepts on per sample), ``l0_local`` (concepts expressed
        per point, by quadrature), ``area_fraction`` and ``participation`` (how local codes are that are expressed: the share
        of the domain where they are not zero, and ``(mean z^2)^2 / mean z^4``, in the mean; NaN if none is),
        ``dead_fraction`` (never on in these samples), ``c90`` (concepts that carry 90 % of the energy), ``usage_entropy`` (of
        how often concepts are on, over log p), ``n_concepts``, ``n_samples``.

    Raises
    ------
    ValueError, TypeError
        If the activations do not fit the model.
    """
    statistics, use = FieldStatistics(), ConceptUse(sae)
    of_prefixes = {n: FieldStatistics() for n in prefixes}
    with eval_mode(sae):
        for x in tqdm(opened(activations).split(batch_size), desc="evaluate", disable=not progress):
            x = x.to(sae.mean.device)
            out = sae(x, prefixes=tuple(prefixes)) if prefixes else sae(x)
            quadrature = sae.basis.quadrature(x.shape[2:], like=out.reconstruction)
            statistics.update(x, out.reconstruction, quadrature)
            for each, reconstruction in zip(of_prefixes.values(), out.prefix_reconstructions, strict=True):
                each.update(x, reconstruction, quadrature)
            use.update(out.codes)
    return {
        "fve": statistics.fve(),
        "relative_l2": statistics.relative_l2(),
        "shrinkage": statistics.shrinkage(),
        "l0": use.l0 / use.n_samples,
        "l0_local": use.l0_local / use.n_samples,
        **use.locality(),
        "dead_fraction": float((use.frequency() == 0).double().mean()),
        "c90": energy_quantile_count(use.energy),
        "usage_entropy": usage_entropy(use.frequency()),
        "n_concepts": sae.n_concepts,
        "n_samples": use.n_samples,
        **{f"fve_first_{n}": each.fve() for n, each in of_prefixes.items()},
    }


class ConceptUse:
    """How often, how strongly and where concepts are on, summed over batches.

    Attributes
    ----------
    energy : Tensor
        ``(n_concepts,)``: sum over the samples of the mean square of what each concept alone would write to white codes,
        code norm squared times kernel norm squared.
    """

    def __init__(self, sae: SAE) -> None:
        self._kernel_square = sae.kernel_norms().double().square().cpu()
        self._on = torch.zeros(sae.n_concepts, dtype=torch.int64)
        self.energy = torch.zeros(sae.n_concepts, dtype=torch.float64)
        self.l0 = self.l0_local = self._participation = 0.0
        self.n_samples = 0

    def update(self, codes: ConceptCodes) -> None:
        """Add the codes of a batch."""
        expressed = codes.expressed()
        self._on += torch.bincount(codes.concept[expressed].cpu(), minlength=codes.n_concepts)
        squares = codes.values[expressed].detach().square()
        self._participation += float(participation(squares, codes.basis.quadrature(codes.grid, like=squares)).sum())
        energy = codes.norms().double().square().cpu() * self._kernel_square[codes.concept.cpu()]
        self.energy.index_add_(0, codes.concept.cpu(), energy)
        self.l0 += float(codes.l0()) * codes.n_samples
        self.l0_local += float(codes.l0_local()) * codes.n_samples
        self.n_samples += codes.n_samples

    def locality(self) -> dict[str, float]:
        """Means over the codes that are expressed somewhere."""
        n = int(self._on.sum()) or float("nan")
        return {"area_fraction": self.l0_local / n, "participation": self._participation / n}

    def frequency(self) -> Tensor:
        """Share of the samples in which each concept is on, ``(n_concepts,)``."""
        return self._on.double() / max(1, self.n_samples)


@torch.no_grad()
def code_consistency(
    sae: SAE,
    coarse: Tensor | IndexedActivations | ActivationStore,
    fine: Tensor | IndexedActivations | ActivationStore,
    *,
    batch_size: int = 8,
) -> dict[str, float]:
    """Do codes mean the same on another grid? Codes of the same samples at two resolutions, compared on the coarse grid.

    Where the fine grid contains the coarse one (whole ratios), fine codes are read off at the shared points; otherwise
    they are resampled. Codes count everywhere, zeros included, by the quadrature of the coarse grid: on a sphere by area.

    Parameters
    ----------
    sae : SAE
        The model.
    coarse, fine : Tensor
        Activations of the same N samples, ``(N, channels, *grid)``, on two grids.
    batch_size : int
        Fields at a time.

    Returns
    -------
    dict
        ``code_consistency`` (Pearson r over all concepts and points; NaN for constant codes), ``code_relative_l2`` and
        ``code_support_iou``.
    """
    low_fields, high_fields = opened(coarse), opened(fine)
    if len(low_fields) != len(high_fields):
        raise ValueError(f"the same samples on two grids are needed, got {len(low_fields)} and {len(high_fields)}")
    sums = torch.zeros(8, dtype=torch.float64)
    with eval_mode(sae):
        for low, high in zip(low_fields.split(batch_size), high_fields.split(batch_size), strict=True):
            a = sae.encode(low.to(sae.mean.device))
            b = a.basis.restrict(sae.encode(high.to(sae.mean.device)).to_dense(), a.grid)
            x, y = a.to_dense().double(), b.double()
            area = a.basis.quadrature(a.grid, like=x)
            both, either = ((x != 0) & (y != 0)).double(), ((x != 0) | (y != 0)).double()
            moments = [torch.ones_like(x), x, y, x * x, y * y, x * y, both, either]
            sums += torch.stack([(area * moment).sum() for moment in moments]).cpu()
    n, x, y, xx, yy, xy, both, either = sums.tolist()
    variances = xx - x * x / n, yy - y * y / n
    varies = variances[0] > 1e-12 * xx and variances[1] > 1e-12 * yy  # by more than rounding
    r = (xy - x * y / n) / math.sqrt(math.prod(variances)) if varies else float("nan")
    return {
        "code_consistency": min(max(r, -1.0), 1.0),
        "code_relative_l2": (max(xx + yy - 2 * xy, 0.0) / xx) ** 0.5 if xx else float("nan"),
        "code_support_iou": both / either if either else 1.0,
    }
