"""What metrics are called and mean, in plain language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .page import number, percent


class Meaning(NamedTuple):
    """How a metric is shown: its group, its name, whether it is a percentage, and one sentence about it."""

    group: str
    name: str
    is_percentage: bool
    sentence: str


_FIDELITY, _ROLLOUTS, _SPARSITY, _DICTIONARY, _GRIDS = (
    "Fidelity",
    "Rollouts",
    "Sparsity",
    "Dictionary",
    "Across grids and references",
)
MEANINGS = {
    "fve": Meaning(
        _FIDELITY,
        "Variance explained (FVE)",
        True,
        "How much of the activations' variation around their mean the concepts explain; 100 % is perfect.",
    ),
    "loss_recovered": Meaning(
        _FIDELITY,
        "Loss recovered",
        True,
        "With the copy in place of the layer, how much accuracy survives; 0 % is as bad as switching it off.",
    ),
    "loss_recovered_mean": Meaning(
        _FIDELITY,
        "Loss recovered, mean",
        True,
        "The same measured against holding the layer at its mean, which is the harder comparison.",
    ),
    "loss_clean": Meaning(_FIDELITY, "Operator's error", False, "Error of the operator as it is."),
    "loss_spliced": Meaning(
        _FIDELITY,
        "Error through concepts",
        False,
        "Error of the operator with the layer replaced by its copy.",
    ),
    "rollout_clean": Meaning(
        _ROLLOUTS,
        "Operator",
        False,
        "Error when the operator has been applied to its own output to the end.",
    ),
    "rollout_spliced": Meaning(
        _ROLLOUTS,
        "Through concepts",
        False,
        "The same with the layer replaced by its copy at every step.",
    ),
    "rollout_zero_ablated": Meaning(
        _ROLLOUTS,
        "Layer at zero",
        False,
        "The same with the layer switched off at every step.",
    ),
    "rollout_mean_ablated": Meaning(
        _ROLLOUTS,
        "Layer at its mean",
        False,
        "The same with the layer held at its mean at every step.",
    ),
    "rollout_loss_recovered": Meaning(
        _ROLLOUTS,
        "Loss recovered at the end",
        True,
        "How much of the accuracy of the last step survives with the copy in place of the layer; 0 % is as bad as at zero.",
    ),
    "rollout_loss_recovered_mean": Meaning(
        _ROLLOUTS,
        "Loss recovered at the end, mean",
        True,
        "The same measured against holding the layer at its mean.",
    ),
    "rollout_persistence": Meaning(_ROLLOUTS, "No change", False, "The same if the first state stayed as it is."),
    "relative_l2": Meaning(
        _FIDELITY,
        "Relative L2 error",
        False,
        "Size of what the reconstruction misses, relative to the activations.",
    ),
    "shrinkage": Meaning(
        _FIDELITY,
        "Shrinkage",
        False,
        "Size of the reconstruction relative to the original; below 1 it is too weak.",
    ),
    "l0": Meaning(_SPARSITY, "Concepts per sample (L0)", False, "How many concepts are on in a sample, on average."),
    "l0_local": Meaning(
        _SPARSITY,
        "Concepts per point",
        False,
        "How many concepts are expressed at a point, on average over the domain's area.",
    ),
    "area_fraction": Meaning(
        _SPARSITY,
        "Area per concept",
        True,
        "How much of the domain a concept covers where it is on; a small figure means local concepts.",
    ),
    "participation": Meaning(
        _SPARSITY,
        "Participation",
        False,
        "How evenly a code spreads over the domain: 1 is everywhere, near 0 is a point.",
    ),
    "dead_fraction": Meaning(
        _DICTIONARY,
        "Dead concepts",
        True,
        "Concepts that were never on in the samples analysed: unused capacity.",
    ),
    "c90": Meaning(_DICTIONARY, "Concepts for 90 % (C90)", False, "How many concepts carry nine tenths of the energy."),
    "usage_entropy": Meaning(
        _DICTIONARY,
        "Evenness of use",
        False,
        "1 if all concepts are on equally often, near 0 if a few do all the work.",
    ),
    "code_consistency": Meaning(
        _GRIDS,
        "Code consistency",
        False,
        "Correlation of codes between two grids; 1 means that resolution does not matter.",
    ),
    "activation_consistency": Meaning(
        _GRIDS,
        "Activation consistency",
        False,
        "The same correlation for the layer itself: where it is below 1, codes cannot reach 1 either.",
    ),
    "code_relative_l2": Meaning(
        _GRIDS,
        "Code difference",
        False,
        "Relative L2 difference of codes between two grids; 0 means that resolution does not matter.",
    ),
    "code_support_iou": Meaning(
        _GRIDS,
        "Support overlap",
        False,
        "How far the places where concepts are on agree between two grids; 1 is fully.",
    ),
    "matched_cosine": Meaning(
        _GRIDS,
        "Matched cosine",
        False,
        "Similarity of concepts to a reference after the best matching; compare it to chance.",
    ),
    "matched_cosine_chance": Meaning(
        _GRIDS,
        "Matched cosine, chance",
        False,
        "The same for a random dictionary: the level that means nothing.",
    ),
}


def metric_groups(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as a page shows them.

    Parameters
    ----------
    metrics : mapping of str to value
        May be nested; a metric is known by the last part of its key.

    Returns
    -------
    dict
        ``"known"``: group -> list of ``{"key", "name", "value", "meaning"}``, in the order of `MEANINGS`;
        ``"others"``: pairs of key (nested ones with dots) and text.
    """
    plain = dict(flatten(metrics))
    is_known = {key: key.rsplit(".", 1)[-1] in MEANINGS and isinstance(v, int | float) for key, v in plain.items()}
    order = {name: i for i, name in enumerate(MEANINGS)}
    groups: dict[str, list[dict[str, str]]] = {meaning.group: [] for meaning in MEANINGS.values()}
    for key in sorted((key for key in plain if is_known[key]), key=lambda key: order[key.rsplit(".", 1)[-1]]):
        meaning, where = MEANINGS[key.rsplit(".", 1)[-1]], key.rpartition(".")[0]
        value = percent(plain[key]) if meaning.is_percentage else number(plain[key])
        name = f"{meaning.name} ({where})" if where else meaning.name
        groups[meaning.group].append({"key": key, "name": name, "value": value, "meaning": meaning.sentence})
    others = [(key, number(value)) for key, value in plain.items() if not is_known[key]]
    return {"known": {group: tiles for group, tiles in groups.items() if tiles}, "others": others}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of nested mappings, keys joined by dots; tensors of one entry as numbers."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value.item() if isinstance(value, Tensor) and value.numel() == 1 else value,
            )
