"""What does a factorised dictionary lose in quality for the parameters it saves?

Fraction of variance explained on held-out samples against the number of parameters (reals), on activations of the
quickstart's FNO, with equally many concepts and the same rules and training as the quickstart: dense SAEFNO, SAETFNO as
Tucker, CP and TT at several shares of the dense parameters, and the pointwise SAE. Everybody gets several learning rates, the
best of which is taken on a tenth of the training samples that nobody trains on.

The operator's activations are kept in the output folder; a run that was cut off goes on where it stopped.
About half an hour on two cores for 64 concepts and one seed; ``--quick`` takes seconds.

    python examples/benchmarks/factorized.py
    python examples/benchmarks/factorized.py --n-concepts 512
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import (
    Device,
    Output,
    Quick,
    Threads,
    curve,
    label,
    machine,
    panels,
    prepare,
    table,
    write_figure,
    write_json,
)
from matplotlib.figure import Figure
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae import checkpoint
from neuralop_sae.quickstart import Darcy
from neuralop_sae.quickstart.operators import train_operator

SITE = "fno_blocks.2"
FORMS = ("tucker", "cp", "tt")
SHARES = (0.05, 0.15, 0.4)
RATES = (6e-3, 1.2e-2)
POINTWISE_RATES = (3e-2, 6e-2, 1e-1)
NAMES = {"dense": "dense", "tucker": "Tucker", "cp": "CP", "tt": "TT", "pointwise": "pointwise SAE"}


@dataclass(frozen=True)
class Trial:
    """One training run: a form, its share of the dense parameters (1 where it has none), a learning rate, a seed."""

    form: str
    share: float
    rate: float
    seed: int

    @property
    def group(self) -> tuple[str, float]:
        return self.form, self.share


@dataclass(frozen=True)
class Data:
    """Activations ``(N, m, *grid)``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def trials(forms: Sequence[str], seeds: int, quick: bool) -> Iterator[Trial]:
    """All runs, the references first."""
    shares, rates = (SHARES[2:3], RATES[1:2]) if quick else (SHARES, RATES)
    groups = [("pointwise", 1.0), ("dense", 1.0), *((form, share) for share in shares for form in forms)]
    for seed in range(seeds):
        for form, share in groups:
            for rate in POINTWISE_RATES[: len(rates)] if form == "pointwise" else rates:
                yield Trial(form, share, rate, seed)


def main(
    output: Output = None,
    quick: Quick = False,
    device: Device = "cpu",
    threads: Threads = 0,
    n_concepts: Annotated[int, typer.Option(help="Dictionary size; above 64 the rule is TopK(64) instead of All.")] = 64,
    concepts_per_point: Annotated[int, typer.Option(help="k of SoftLocalTopK and of the pointwise SAE.")] = 4,
    seeds: Annotated[int, typer.Option(help="Runs of each form; the mean is drawn.")] = 1,
    form: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(FORMS)}; may be repeated; default: all.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 10,
) -> None:
    """Train everybody and draw quality over parameters."""
    folder, where = prepare(__file__, output, device, threads)
    unknown = set(form or FORMS) - set(FORMS)
    if unknown:
        raise typer.BadParameter(f"no form {', '.join(sorted(unknown))}; known: {', '.join(FORMS)}")
    problem = Darcy()
    if quick:
        problem = Darcy(n_train=40, n_test=8, resolutions=(16, 48), hidden_channels=8, n_layers=3, operator_epochs=1)
        n_concepts, epochs = 16, 1
    data = activations(problem, folder, device)
    setting = {"n_concepts": n_concepts, "k": concepts_per_point, "epochs": epochs, "train": list(data.train.shape)}
    name = f"factorized_{n_concepts}"
    known = resumed(folder / f"{name}.json", setting)
    for trial in trials(form or FORMS, seeds, quick):
        key = asdict(trial)
        if not any(key.items() <= row.items() for row in known):
            known.append({**key, **run(trial, data, n_concepts, concepts_per_point, epochs, where)})
            print({**key, "fve": round(known[-1]["fve"], 4), "parameters": known[-1]["parameters"]}, flush=True)
        result = {"machine": machine(where), "setting": setting, "trials": known, "best": best(known)}
        write_json(folder, name, result)
    table(f"{n_concepts} concepts, best learning rate of each", best(known))
    write_figure(folder, name, draw(best(known), n_concepts))


def activations(problem: Darcy, folder: Path, device: str) -> Data:
    """The operator's activations, from the folder if they are there; a tenth of the training samples is for validation."""
    path = folder / f"activations_{problem.n_train}_{problem.resolutions[0]}.safetensors"
    if not path.exists():
        torch.manual_seed(problem.seed)
        data = problem.splits(folder / "data", True)
        operator, processor = train_operator(problem, data.train, device)
        splits = {"activations": data.train, "test": data.coarse}
        found = {
            name: ns.capture(operator, SITE, {"x": split.x, "y": split.y}, data_processor=processor)
            for name, split in splits.items()
        }
        checkpoint.write_tensors(path, found)
    tensors = checkpoint.read_tensors(path)[0]
    train = tensors["activations"]
    n = len(train) - max(1, len(train) // 10)
    return Data(train[:n], train[n:], tensors["test"])


def resumed(path: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an earlier call with the same setting."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    return earlier["trials"] if earlier["setting"] == setting else []


def model(trial: Trial, channels: int, p: int, k: int) -> ns.SAE:
    """An untrained model."""
    torch.manual_seed(trial.seed)
    if trial.form == "pointwise":
        return ns.SAEPointwise(channels, p, k=k)
    rules: dict[str, Any] = {
        "concept_rule": ns.All() if p <= 64 else ns.TopK(64),
        "domain_rule": ns.SoftLocalTopK(k),
    }
    if trial.form == "dense":
        return ns.SAEFNO(channels, p, (9, 9), **rules)
    return ns.SAETFNO(channels, p, (9, 9), **rules, factorization=trial.form, rank=trial.share)


def run(trial: Trial, data: Data, p: int, k: int, epochs: int, device: torch.device) -> dict[str, Any]:
    """Train one and measure it on samples that it has not seen."""
    sae = model(trial, data.train.shape[1], p, k).to(device)
    config = ns.TrainingConfig(n_epochs=epochs, learning_rate=trial.rate, seed=trial.seed)
    started = time.perf_counter()
    try:
        ns.train(sae, data.train, config, progress=False)
    except FloatingPointError as error:  # the model is left in its last good state
        print(error)
    seconds = time.perf_counter() - started
    measured = ns.evaluate(sae, data.test)
    return {
        "validation_fve": ns.evaluate(sae, data.validation)["fve"],
        **{name: measured[name] for name in ("fve", "l0", "l0_local", "dead_fraction")},
        "parameters": sum(q.numel() * (2 if q.is_complex() else 1) for q in sae.parameters()),
        "seconds": seconds,
    }


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each form and share: the learning rate that does best on the validation samples, mean over the seeds."""
    groups: dict[tuple[str, float], dict[float, list[dict[str, Any]]]] = {}
    for row in rows:
        groups.setdefault((row["form"], row["share"]), {}).setdefault(row["rate"], []).append(row)
    return [
        _summary(form, share, max(by_rate.values(), key=lambda same: _mean(same, "validation_fve")))
        for (form, share), by_rate in groups.items()
    ]


def _summary(form: str, share: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = [row["fve"] for row in rows]
    return {
        "form": form,
        "share": share,
        "parameters": rows[0]["parameters"],
        "FVE": _mean(rows, "fve"),
        "spread over seeds": max(values) - min(values) if len(values) > 1 else None,
        "learning rate": rows[0]["rate"],
        "l0_local": _mean(rows, "l0_local"),
        "dead": _mean(rows, "dead_fraction"),
        "seconds": _mean(rows, "seconds"),
        "seeds": len(rows),
    }


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return statistics.mean(row[column] for row in rows)


def draw(rows: list[dict[str, Any]], n_concepts: int) -> Figure:
    """FVE over parameters, one marker per form; dense and pointwise models are single points."""
    figure, (axis,) = panels(1, width=5.2, height=3.6)
    for number, (form, name) in enumerate(NAMES.items()):
        mine = sorted((row["parameters"], row["FVE"]) for row in rows if row["form"] == form)
        if mine:
            curve(axis, number, [x for x, _ in mine], [y for _, y in mine], name)
    axis.set_xscale("log")
    label(axis, f"{n_concepts} concepts", "parameters (real numbers)", "fraction of variance explained, held-out samples")
    axis.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
