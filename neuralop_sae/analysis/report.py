"""The report: what a sparse autoencoder found in a layer, as one HTML file that needs no network."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ..checkpoint import write_atomically
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..models.base import SAE
from .cards import Cards
from .causal import CausalTest
from .drawing import ColorScale
from .evidence import Evidence
from .glossary import flatten, metric_groups
from .page import Page, number, percent
from .pictures import graticule
from .summaries import summarize

_PACKAGES = ("neuralop_sae", "neuraloperator", "torch", "matplotlib")


def report(
    sae: SAE,
    activations: Tensor | IndexedActivations,
    *,
    path: str | Path,
    title: str = "Concepts of a neural operator",
    inputs: Tensor | None = None,
    metrics: Mapping[str, Any] | None = None,
    history: Any = None,
    model_card: Mapping[str, Any] | None = None,
    high_resolution: Tensor | None = None,
    labels: Mapping[int, str] | None = None,
    probes: pd.DataFrame | None = None,
    effects: CausalTest | pd.DataFrame | None = None,
    stability: SAE | Mapping[int, float] | Tensor | None = None,
    fve_by_k: Mapping[int, float] | None = None,
    n_concepts: int = 24,
    n_samples: int = 4,
    batch_size: int = 16,
) -> Path:
    """Write what an SAE found as one self-contained HTML file.

    The page holds key figures, overview figures, a table of all concepts that can be searched and sorted, and
    a card for each of the strongest: atom, spectrum, codes in the samples that use it most, neighbours, and, where they are
    given, physics, effects and stability. It needs no network and is the same for the same arguments.

    Parameters
    ----------
    sae : SAE
        The model; run in eval mode, on its own device.
    activations : Tensor, or activations of a store or stream
        ``(N, channels, *grid)``, what the model was made for. Codes are computed in batches, never all held.
    path : path-like
        The file to write; its folder is made. An existing file is replaced in one step.
    title : str
        Heading of the page.
    inputs : Tensor, optional
        ``(N, channels, *grid)``, the operator's inputs for the same samples, on any grid: contours show their
        first channel.
    metrics : mapping of str to number, optional
        What ``evaluate`` and ``faithfulness`` return. By default a few are computed from the activations.
    history : sequence of mappings, or an object with such ``rows``, optional
        The training history, as ``train`` returns it.
    model_card : mapping of str, optional
        Provenance: date, seed, command, layer, data set. Shown as it is.
    high_resolution : Tensor, optional
        ``(n, channels, *finer_grid)``, activations of the first n samples on a finer grid.
    labels : mapping of int to str, optional
        Names that people gave to concepts.
    probes : pandas.DataFrame, optional
        What :func:`~neuralop_sae.probe` returns: physics on the cards, with intervals, and in the table.
    effects : CausalTest or pandas.DataFrame, optional
        What :func:`~neuralop_sae.causal_test` returns, or its table of effects.
    stability : SAE, mapping of int to float or Tensor, optional
        An autoencoder from another seed, or matched cosines by concept, as :func:`~neuralop_sae.stability` gives them.
    fve_by_k : mapping of int to float, optional
        Variance explained by k, say of models trained at each. By default :func:`~neuralop_sae.fve_by_k` of the first
        samples, where the model's rules have a k.

    Other Parameters
    ----------------
    n_concepts, n_samples : int
        Cards, at most, and maps on each. Pictures get coarser with their number: a page of 500 cards stays below 30 MB.
    batch_size : int
        Samples per forward pass.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before anything is computed.
    OSError
        If `path` cannot be written, before anything is computed.
    """
    for name, value in (("n_concepts", n_concepts), ("n_samples", n_samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    history = getattr(history, "rows", history)
    activations = opened(activations)
    _check_fields(sae, activations, inputs, high_resolution)
    _check_plain(metrics, history, model_card, labels)
    target = _writable(Path(path))
    evidence = Evidence.of(sae, activations, probes, effects, stability)
    summary = summarize(sae, activations, n_samples=n_samples, batch_size=batch_size)
    page = Page(sae, activations, inputs, summary, evidence, dict(labels or {}), n_concepts, n_samples, batch_size)
    cards = Cards(sae, activations, inputs, summary, evidence, page.shown, batch_size)
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=page.facts(),
            groups=metric_groups(summary.metrics if metrics is None else metrics),
            overview=list(page.overview(history, high_resolution, fve_by_k)),
            rows=page.rows,
            n_concepts=sae.n_concepts,
            cards=list(cards),
            spectrum_axes=cards.spectra[0],
            outlines=cards.contours,
            graticule=graticule(),
            evidence=evidence,
            contours=inputs is not None,
            aspect=page.aspect,
            n_dim=sae.n_dim,
            lines=sae.n_dim == 1,
            on_sphere=sae.basis.colatitudes(page.grid[0]) is not None,
            wavenumber=sae.basis.wavenumber_label,
            atom_gradient=ColorScale("RdBu_r", -1.0, 1.0).css_gradient(),
            provenance=_provenance(model_card),
            configuration=sae.config(),
        )
    )
    write_atomically(target, lambda temporary: _write_text(temporary, text))
    return target


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    loader = PackageLoader("neuralop_sae.analysis")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["percent"] = percent
    environment.filters["number"] = number
    return environment


def _check_fields(
    sae: SAE, activations: Tensor | IndexedActivations, inputs: Tensor | None, high_resolution: Tensor | None
) -> None:
    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be an SAE of neuralop_sae, got {type(sae).__name__}; load one with neuralop_sae.load")
    named = {"activations": activations, "inputs": inputs, "high_resolution": high_resolution}
    for name, field in named.items():
        if field is None and name != "activations":
            continue
        if not isinstance(field, Tensor) and not (name == "activations" and isinstance(field, IndexedActivations)):
            raise TypeError(f"{name} must be a tensor (N, channels, *grid), got {type(field).__name__}")
        if len(field.shape) != sae.n_dim + 2 or 0 in field.shape:
            raise ValueError(f"{name} must be (N, channels, *grid) with {sae.n_dim} grid axes, got {tuple(field.shape)}")
        if name != "inputs" and field.shape[1] != sae.in_channels:
            raise ValueError(f"{name} has {field.shape[1]} channels; this model was made for {sae.in_channels}")
    if inputs is not None and len(inputs) != len(activations):
        raise ValueError(f"inputs has {len(inputs)} samples, activations {len(activations)}: pass the same samples")
    if high_resolution is not None and len(high_resolution) > len(activations):
        raise ValueError(
            f"high_resolution has {len(high_resolution)} samples, activations only {len(activations)}: "
            "it holds the first samples again, on a finer grid"
        )


def _check_plain(metrics: Any, history: Any, model_card: Any, labels: Any) -> None:
    for name, value in (("metrics", metrics), ("model_card", model_card), ("labels", labels)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a mapping such as a dict, got {type(value).__name__}")
    rows = [] if history is None else history
    if isinstance(rows, Mapping | str) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError("history must be a sequence of mappings, one per logged step, such as [{'step': 0, 'loss': 1.0}]")


def _writable(path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, such as {path / 'report.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return path


def _provenance(model_card: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The model card, then the versions of this run that the card does not name."""
    rows = {key: number(value) for key, value in flatten(model_card or {})}
    rows.setdefault("python", platform.python_version())
    for package in _PACKAGES:
        try:
            rows.setdefault(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            # Run from a checkout that is not installed.
            continue
    return list(rows.items())
