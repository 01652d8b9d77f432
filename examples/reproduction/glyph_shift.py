"""Do codes move with an image, and do reconstructions hold, when it is shifted or turned? On images of characters."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from glyphs import COMPARED, MATCHINGS, NAMES, Bed, model, nonzeros, trained, tuned
from matplotlib.figure import Figure
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.metrics import fraction_of_variance_explained, pearson, relative_l2

SHIFTS = (0, 1, 2, 4, 8)  # points along both axes
TURNS = (0, 5, 10, 20, 30, 45)  # degrees
MOVES = {"circular": SHIFTS, "zeros": SHIFTS, "turn": TURNS}


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """FVE and codes of images that are shifted and turned, for models trained on images that are so very little."""
    started = time.perf_counter()
    bed, seeds = (Bed(40, 10, 1), 1) if quick else (Bed(), seeds)
    chosen = [(kind, matching) for kind in NAMES for matching in MATCHINGS]
    rates = {of: tuned(bed, *of) for of in chosen}

    def measure(seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, matching in chosen:
            sae = trained(bed, kind, matching, COMPARED[matching], rates[kind, matching], seed)
            found |= {f"{kind}/{matching}/{name}": value for name, value in robustness(sae, bed).items()}
        return found

    values = over_seeds(measure, seeds)
    settings = {
        "bed": {"n_train": bed.n_train, "n_test": bed.n_test, "n_epochs": bed.n_epochs},
        "seeds": seeds,
        "rates": {"/".join(of): rate for of, rate in rates.items()},
        "models": {"/".join(of): model(*of, COMPARED[of[1]], 0).config() for of in chosen},
    }
    rows = [codes_row(values), *(fve_row(values, *of) for of in (("shifts", "circular", 8), ("turns", "turn", 45)))]
    write(__file__, output, rows=rows, values=values, figure=draw(values), settings=settings, started=started)


@torch.no_grad()
def robustness(sae: ns.SAE, bed: Bed) -> dict[str, float]:
    """FVE of moved images; the codes of shifted images beside shifted codes; and the norms of codes, which tell what is there
    but not where, beside those of the images as they were."""
    x = bed.test
    before = sae.encode(x).to_dense()
    values = {"nonzeros": nonzeros(sae, x)}
    for move, steps in MOVES.items():
        for step in steps:
            moved = bed.turned(step) if move == "turn" else shifted(x, step, circular=move == "circular")
            out = sae(moved)
            codes = out.codes.to_dense()
            values[f"{move}/{step}/fve"] = fraction_of_variance_explained(moved, out.reconstruction)
            values[f"{move}/{step}/norms"] = pearson(*(each.flatten(2).norm(dim=2) for each in (codes, before)))
            if move == "circular":
                values[f"{move}/{step}/difference"] = relative_l2(codes, shifted(before, step, circular=True))
    return values


def shifted(x: Tensor, step: int, *, circular: bool) -> Tensor:
    """Moved along both axes: what leaves on one side comes in on the other, or nothing does."""
    moved = x.roll((step, step), (-2, -1))
    if not circular and step:
        moved[..., :step, :], moved[..., :step] = 0, 0
    return moved


def kept(values: dict[str, list[float]], kind: str, matching: str, move: str, step: int) -> list[float]:
    """FVE of moved images over FVE of the images as they were, for each seed."""
    before, after = (values[f"{kind}/{matching}/{move}/{at}/fve"] for at in (0, step))
    return [b / a for a, b in zip(before, after, strict=True)]


def codes_row(values: dict[str, list[float]]) -> Row:
    """Codes of a shifted image are the shifted codes."""

    def worst(kind: str, matching: str) -> float:
        return max(max(values[f"{kind}/{matching}/circular/{step}/difference"]) for step in SHIFTS)

    def text(kind: str) -> str:
        return "; ".join(f"{name}: difference at most {worst(kind, of):.1e}" for of, name in MATCHINGS.items())

    criteria = [
        Criterion(f"SAE-FNO, {name}: relative difference at most 1e-5 at every shift, every seed", worst("fno", of) <= 1e-5)
        for of, name in MATCHINGS.items()
    ]
    others = "; ".join(f"{NAMES[kind]}, {text(kind)}" for kind in ("cnn", "mlp"))
    remark = "By construction, for SAE-CNN too. A code of SAE-MLP is one number for the whole image: it should stay as it is."
    claim = "images of characters: codes of a shifted image are the shifted codes"
    return Row(claim, measured(values), text("fno"), others, criteria, remark)


def fve_row(values: dict[str, list[float]], name: str, move: str, most: int) -> Row:
    """FVE under shifts, or turns."""
    steps = MOVES[move][1:]
    moves: tuple[str, ...] = (move, "zeros") if move == "circular" else (move,)

    def better(matching: str, pick: Callable[[str, str, str, int], list[float]]) -> bool:
        return all(
            min(pick("fno", matching, each, step)) > max(pick("mlp", matching, each, step)) for each in moves for step in steps
        )

    def fve(kind: str, matching: str, each: str, step: int) -> list[float]:
        return values[f"{kind}/{matching}/{each}/{step}/fve"]

    criteria = []
    for matching, named in MATCHINGS.items():
        share = better(matching, partial(kept, values))
        text = f"{named}: SAE-FNO keeps a larger share of its FVE than SAE-MLP in all {name}, every pair of seeds"
        criteria.append(Criterion(text, share))
        text = f"{named}: FVE of SAE-FNO above that of SAE-MLP in all {name}, every pair of seeds"
        criteria.append(Criterion(text, better(matching, fve)))
    unit = "points along both axes" if move == "circular" else "degrees"
    remark = "; ".join(f"{NAMES[kind]}: {norms(values, kind, move, most)}" for kind in NAMES)
    remark = f"Correlation of the norms of codes before and after, which do not say where a concept is: {remark}."
    remark += " With as many concepts on, an operator can copy an image through one of them; nonzeros are the harder matching."
    if move == "circular":
        zeros = "; ".join(
            f"{NAMES[kind]}, {named}: {spread(kept(values, kind, of, 'zeros', most))}"
            for kind in NAMES
            for of, named in MATCHINGS.items()
        )
        remark += f" Share of FVE kept with zeros coming in instead of what leaves: {zeros}."
    return Row(
        f"images of characters: reconstruction is robust to {name}",
        f"up to {most} {unit}; {measured(values)}",
        fves(values, "fno", move, most),
        "; ".join(f"{NAMES[kind]}, {fves(values, kind, move, most)}" for kind in ("cnn", "mlp")),
        criteria,
        remark,
    )


def norms(values: dict[str, list[float]], kind: str, move: str, most: int) -> str:
    """Correlation of code norms at the largest move, for both matchings."""
    of = (f"{spread(values[f'{kind}/{matching}/{move}/{most}/norms'])} at {name}" for matching, name in MATCHINGS.items())
    return " and ".join(of)


def fves(values: dict[str, list[float]], kind: str, move: str, most: int) -> str:
    """FVE before and after the largest move, for both matchings."""
    return "; ".join(
        f"{name}: FVE {spread(values[f'{kind}/{of}/{move}/0/fve'])}, then {spread(values[f'{kind}/{of}/{move}/{most}/fve'])}"
        for of, name in MATCHINGS.items()
    )


def measured(values: dict[str, list[float]]) -> str:
    """What the models spend."""

    def spent(matching: str) -> str:
        return ", ".join(f"{spread(values[f'{kind}/{matching}/nonzeros'], 0)} of {NAMES[kind]}" for kind in NAMES)

    counts = "; ".join(f"{name}: {spent(matching)}" for matching, name in MATCHINGS.items())
    return f"characters of eight fonts, held out (nonzeros at {counts})"


def draw(values: dict[str, list[float]]) -> Figure:
    """Share of FVE kept and agreement of code norms, against shift and turn; a row of panels for each matching."""
    figure, axes = subplots(len(MATCHINGS), len(MOVES), 3.0, 2.7)
    labels = {"circular": "circular shift (points)", "zeros": "shift with zeros (points)", "turn": "turn (degrees)"}
    for row, (matching, name) in zip(axes, MATCHINGS.items(), strict=True):
        for ax, (move, steps) in zip(row, MOVES.items(), strict=True):
            for kind, color in zip(NAMES, PALETTE, strict=False):
                runs = [values[f"{kind}/{matching}/{move}/{step}/fve"] for step in steps]
                ax.plot(steps, [sum(run) / len(run) for run in runs], color=color, marker="o", ms=3.5, label=NAMES[kind])
                ax.fill_between(steps, [min(run) for run in runs], [max(run) for run in runs], color=color, alpha=0.2, lw=0)
            ax.axhline(0, color="black", lw=0.5)
            ax.set(xlabel=labels[move], ylabel="FVE", title=name, ylim=(None, 1.05))
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("Images of characters: models trained on images moved by 1.5 points and 10 degrees at most")
    return figure


if __name__ == "__main__":
    typer.run(main)
