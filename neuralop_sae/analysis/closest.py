"""Which concept follows a quantity closest: chosen in one table of probes, told from another."""

from __future__ import annotations

import pandas as pd

_PAIR = ["concept", "quantity", "kind", "lag"]


def closest_concepts(probes: pd.DataFrame, n: int = 1, *, held_out: pd.DataFrame | None = None) -> pd.DataFrame:
    """The concepts that follow each quantity closest, by the absolute correlation at the best lag.

    The largest of many correlations is too large, and its interval does not know that it was chosen. So choose on some
    trajectories and read off others: with `held_out`, `probes` says which, and all numbers are those of `held_out`.

    Parameters
    ----------
    probes : pandas.DataFrame
        What :func:`~neuralop_sae.probe` returns.
    n : int, optional
        How many concepts for each quantity.
    held_out : pandas.DataFrame, optional
        The same probes of other samples.

    Returns
    -------
    pandas.DataFrame
        Rows of `held_out`, or else of `probes`, by ``quantity``, in the order in which the probes name them, closest first. A
        quantity without any correlation is left out.

    Raises
    ------
    ValueError
        If `n` is not positive, or `held_out` does not hold what was chosen.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=4, n_modes=(5, 5), concept_rule=ns.TopK(2))
    >>> x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> choose, rest = (ns.probe(sae, part, {"x": part[:, 0]}) for part in (x[:12], x[12:]))
    >>> closest_concepts(choose, held_out=rest).index.tolist()
    ['x']
    """
    if n < 1:
        raise ValueError(f"n counts the concepts of each quantity, at least 1; got {n}")
    known = probes.dropna(subset="correlation")
    ranked = known.sort_values("correlation", key=abs, ascending=False, kind="stable").drop_duplicates(_PAIR[:-1])
    chosen = ranked.groupby("quantity", sort=False).head(n).set_index("quantity").loc[known.quantity.unique()].reset_index()
    if held_out is not None:
        asked = chosen[_PAIR]
        chosen = asked.merge(held_out, on=_PAIR)
        if len(chosen) < len(asked):
            gone = asked.merge(chosen[_PAIR], how="left", indicator=True).query("_merge == 'left_only'")[_PAIR]
            raise ValueError(
                f"held_out has no row for {gone.to_dict('records')}: probe the same autoencoder with the same quantities "
                "and lags"
            )
    return chosen.set_index("quantity")
