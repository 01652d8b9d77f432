"""Which concepts are used where a parameter changes: at another Reynolds number, another season, in another trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import notebook
from ..attach.capture import eval_mode
from ..data.indexed import IndexedActivations
from ..models.base import SAE
from .evaluate import ConceptUse
from .matching import match_atoms


@dataclass(frozen=True)
class Recruitment:
    """Use of concepts at several values of a parameter.

    Parameters
    ----------
    frequency : pandas.DataFrame
        Share of the samples in which each concept (rows) is on, at each value (columns).
    min_frequency : float
        From which on a concept is used.
    concepts : pandas.DataFrame
        The number of each concept in the model of each value; -1 where it has none. With one model, the row itself.
    """

    frequency: pd.DataFrame
    min_frequency: float
    concepts: pd.DataFrame

    def __repr__(self) -> str:
        used = ", ".join(f"{value}: {n}" for value, n in self.used.sum().items())
        return f"Recruitment(concepts used at {used}; {len(self.shared)} at all)"

    def _repr_html_(self) -> str:
        rows = [(value, n, len(self.unique[value])) for value, n in self.used.sum().items()]
        title = f"Recruitment: {len(self.shared)} concepts used at every value"
        return notebook.table(title, ["value", "concepts used", "used nowhere else"], rows)

    @property
    def used(self) -> pd.DataFrame:
        """Boolean: which concept is used at which value."""
        return self.frequency >= self.min_frequency

    @property
    def jaccard(self) -> pd.DataFrame:
        """Of each two values: concepts used at both over concepts used at either. NaN where there is none."""
        used = self.used.to_numpy(dtype=np.float64)
        both, each = used.T @ used, used.sum(0)
        return self._square(both, each[:, None] + each - both)

    @property
    def chance(self) -> pd.DataFrame:
        """What :attr:`jaccard` is expected to be, to first order, of sets of these sizes drawn at random from all concepts of
        the table."""
        each = self.used.to_numpy(dtype=np.float64).sum(0)
        both = np.outer(each, each) / len(self.used)
        return self._square(both, each[:, None] + each - both)

    def _square(self, both: np.ndarray, either: np.ndarray) -> pd.DataFrame:
        values = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
        return pd.DataFrame(values, index=self.used.columns, columns=self.used.columns)

    @property
    def shared(self) -> list[int]:
        """Concepts used at every value."""
        return self.used.index[self.used.all(axis=1)].tolist()

    @property
    def unique(self) -> dict[Any, list[int]]:
        """Concepts used at one value only, by value."""
        alone = self.used.sum(axis=1) == 1
        return {value: self.used.index[alone & self.used[value]].tolist() for value in self.used.columns}


@torch.no_grad()
def recruitment(
    sae: SAE | Mapping[Any, SAE],
    acts: Mapping[Any, Tensor | IndexedActivations],
    *,
    min_frequency: float = 0.01,
    min_cosine: float = 0.7,
    batch_size: int = 16,
) -> Recruitment:
    """Which concepts a model uses at each value of a parameter; or models trained at each.

    Concepts of several models are the same where their atoms match
    (:func:`~neuralop_sae.analysis.matching.match_atoms`), one to one. What is used in a later model and matches nothing of
    the earlier ones gets a row of its own.

    Parameters
    ----------
    sae : SAE or mapping to SAE
        One model, or one for each value; training flags are restored.
    acts : mapping to Tensor, or to activations of a store or stream
        Activations ``(N, channels, *grid)`` at each value of the parameter.
    min_frequency : float
        Share of the samples in which a concept has to be on to count as used, above 0. Take as many samples at each value:
        rare concepts show themselves only in many.
    min_cosine : float
        From which on two atoms match.
    batch_size : int
        Fields encoded at a time.

    Returns
    -------
    Recruitment

    Raises
    ------
    TypeError
        If activations are not by value.
    ValueError
        If the values of models and activations differ, or a threshold is not allowed.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=4, n_modes=(5, 5), concept_rule=ns.TopK(2))
    >>> found = recruitment(sae, {100: torch.randn(6, 1, 8, 8), 400: torch.randn(6, 1, 8, 8)})
    >>> found.jaccard.loc[100, 100]
    np.float64(1.0)
    """
    if not isinstance(acts, Mapping):
        raise TypeError(
            f"acts is a mapping from values of a parameter to activations, such as {{100: x}}; got {type(acts).__name__}"
        )
    if not 0 < min_frequency <= 1 or not acts:
        raise ValueError(f"min_frequency is in (0, 1], and acts has a value or more; got {min_frequency} and {list(acts)}")
    if not isinstance(sae, Mapping):
        table = pd.DataFrame({value: _frequency(sae, some, batch_size) for value, some in acts.items()})
        rows = {value: table.index for value in acts}
        return Recruitment(table, min_frequency, pd.DataFrame(rows, index=table.index))
    if set(sae) != set(acts):
        raise ValueError(f"models and activations are of the same values, got {list(sae)} and {list(acts)}")
    known: Tensor | None = None
    columns: dict[Any, np.ndarray] = {}
    places: dict[Any, np.ndarray] = {}
    for value, some in acts.items():
        frequency = _frequency(sae[value], some, batch_size)
        used = torch.from_numpy(frequency >= min_frequency)
        known, place = _align(known, sae[value], used, min_cosine)
        places[value] = place
        columns[value] = np.where(place >= 0, frequency[place], 0.0)
    index = range(0 if known is None else len(known))
    tables = ({value: pd.Series(column) for value, column in part.items()} for part in (columns, places))
    frequencies, concepts = (pd.DataFrame(part, index=index) for part in tables)
    return Recruitment(frequencies.fillna(0.0), min_frequency, concepts.fillna(-1).astype(int))


def _frequency(sae: SAE, acts: Tensor | IndexedActivations, batch_size: int) -> np.ndarray:
    use = ConceptUse(sae)
    with eval_mode(sae):
        for batch in acts.split(batch_size):
            use.update(sae.encode(batch.to(sae.mean.device)).detach())
    return use.frequency().numpy()


def _align(known: Tensor | None, sae: SAE, used: Tensor, min_cosine: float) -> tuple[Tensor, np.ndarray]:
    """Atoms known so far with the new ones of a model, and which of its concepts each is, -1 for none."""
    if known is None:
        return sae.atoms(range(sae.n_concepts), sae.atom_grid).detach().cpu(), np.arange(sae.n_concepts)
    atoms = sae.atoms(range(sae.n_concepts), known.shape[2:]).detach().cpu()
    matching = match_atoms(atoms, known, sae.basis, alive=used)
    place = matching.learned.where(matching.cosine >= min_cosine, -1).numpy()
    new = np.setdiff1d(used.nonzero()[:, 0].numpy(), place)
    return torch.cat([known, atoms[torch.from_numpy(new)]]), np.concatenate([place, new])
