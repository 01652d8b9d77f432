"""What sparsity costs: variance explained against the number of concepts that may be on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..attach.capture import eval_mode
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..layers.concept_rules import BatchTopK, TopK
from ..layers.domain_rules import LocalTopK
from ..metrics import FieldStatistics
from ..models.base import SAE


@torch.no_grad()
def fve_by_k(
    sae: SAE, activations: Tensor | IndexedActivations, ks: Sequence[int] = (), *, batch_size: int = 16
) -> dict[int, float]:
    """Fraction of variance explained by a trained model when its rule lets another number k of concepts on.

    k is that of the concept rule where it is :class:`~neuralop_sae.TopK` (concepts per sample), else that of the domain rule
    where it is a :class:`~neuralop_sae.LocalTopK` (concepts per point). Nothing is trained again: models trained at each k
    would do better.

    Parameters
    ----------
    sae : SAE
        The model; in eval mode, its k restored.
    activations : Tensor, or activations of a store or stream
        ``(N, channels, *grid)``.
    ks : sequence of int
        By default a quarter, half, once and twice the model's own.
    batch_size : int
        Fields at a time.

    Returns
    -------
    dict of int to float
        From k to FVE; the largest k is at most the number of concepts.

    Raises
    ------
    ValueError
        If a k is not from 1 to the number of concepts, or the rules have none that can be changed after training.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=16, n_modes=(5, 5), concept_rule=ns.TopK(4))
    >>> list(fve_by_k(sae, torch.randn(3, 1, 8, 8)))
    [1, 2, 4, 8]
    """
    rule, _ = k_of(sae)
    if rule is None:
        raise ValueError(
            "fve_by_k changes k of TopK or of a local TopK; the rules of this model have none: compare trained models"
        )
    own = rule.k
    chosen = sorted(set(ks) or {min(k, sae.n_concepts) for k in (own // 4, own // 2, own, 2 * own) if k})
    if unfit := [k for k in chosen if not 1 <= k <= sae.n_concepts]:
        raise ValueError(f"k is from 1 to n_concepts={sae.n_concepts}, got {unfit}")
    found = {}
    with eval_mode(sae):
        for k in chosen:
            statistics = FieldStatistics()
            with _with_k(rule, k, sae.n_concepts):
                for x in opened(activations).split(batch_size):
                    x = x.to(sae.mean.device)
                    rebuilt = sae(x).reconstruction
                    statistics.update(x, rebuilt, sae.basis.quadrature(x.shape[2:], like=rebuilt))
            found[k] = statistics.fve()
    return found


def k_of(sae: SAE) -> tuple[TopK | LocalTopK | None, str]:
    """The rule whose k can be changed after training, and what it counts."""
    concept_rule, domain_rule = (getattr(sae, name, None) for name in ("concept_rule", "domain_rule"))
    # A batch top-k goes by its learned threshold, which no k changes.
    if isinstance(concept_rule, TopK) and not isinstance(concept_rule, BatchTopK):
        return concept_rule, "concepts per sample"
    if isinstance(domain_rule, LocalTopK):
        return domain_rule, "concepts per point"
    return None, ""


@contextmanager
def _with_k(rule: TopK | LocalTopK, k: int, n_concepts: int) -> Iterator[None]:
    own = rule.k
    try:
        rule.k = k
        rule.bind(n_concepts)
        yield
    finally:
        rule.k = own
        rule.bind(n_concepts)
