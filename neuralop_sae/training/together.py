"""Runs that go on in step, and read each batch once where they share activations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain, pairwise

from torch import Tensor
from tqdm import tqdm

from .distributed import Mesh
from .run import Run
from .statistics import channel_statistics


def begin(sites: Sequence[Sequence[Run]]) -> None:
    """Begin runs; those of a site share their activations, which are read once."""
    found = [channel_statistics([run.sae for run in site], site[0].activations, site[0].config.batch_size) for site in sites]
    for site, statistics in zip(sites, found, strict=True):
        few = site[0].activations[site[0].draw_few()[0]]
        for run, (mean, scale) in zip(site, statistics, strict=True):
            run.start_from(mean, scale, few)


def go(sites: Sequence[Sequence[Run]], progress: bool) -> None:
    """Take runs of one order to their end, in step. Those of a site share their activations: each batch is read once, for all
    that have not had it yet (a resumed run may be ahead of others). If one becomes NaN or Inf, all fall back."""
    runs = [run for site in sites for run in site]
    behind = min(runs, key=lambda run: run.step)
    quiet = not (progress and behind.parallel.is_main)
    bar = tqdm(total=behind.n_steps, initial=behind.step, desc="train", unit="step", disable=quiet)
    for run in runs:
        run.sae.train()
        run.keep()
    try:
        with bar:
            steps = pairwise(chain[Tensor | None](behind.order(), [None]))
            for step, (index, following) in enumerate(steps, start=behind.step):
                assert index is not None
                shown: dict[str, float] = {}
                for site in sites:
                    shown |= _advance([run for run in site if run.step == step], index, following)
                bar.update()
                if shown:
                    bar.set_postfix(shown)
    except FloatingPointError:
        for run in runs:
            run.fall_back()
        raise
    except RuntimeError as error:
        if isinstance(behind.parallel, Mesh):
            raise behind.lost(error) from error
        raise
    finally:
        for run in runs:
            run.sae.eval()


def _advance(runs: Sequence[Run], index: Tensor, following: Tensor | None) -> dict[str, float]:
    """A step of runs on one site, with the one batch; what they logged."""
    if not runs:
        return {}
    started = time.perf_counter()
    activations, share = runs[0].activations, runs[0].parallel.share
    x = activations[share(index)].to(runs[0].device)
    prefetch = getattr(activations, "prefetch", None)
    if prefetch is not None and following is not None:
        prefetch(share(following), runs[0].device)
    reading = time.perf_counter() - started
    shown: dict[str, float] = {}
    for run in runs:
        run.history.seconds += reading
        shown |= run.advance(x.to(run.device))
    return shown
