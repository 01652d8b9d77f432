"""Are codes and atoms localised, more than by chance? On images of characters."""

from __future__ import annotations

import time
from typing import Any

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, spread, write
from glyphs import COMPARED, MATCHINGS, NAMES, SIZE, Bed, started, trained, tuned
from matplotlib.figure import Figure
from stability import Dictionary
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.analysis.matching import centre
from neuralop_sae.metrics import energy_area, participation

MEASURES = {"area": "area that holds 90 % of the energy", "participation": "participation (mean z²)² / mean z⁴"}
OF = {
    "codes": "codes",
    "codes, Gaussian": "Gaussian fields of the codes' spectra",
    "codes, started": "codes as training starts",
}
OF |= {"atoms": "atoms", "atoms, started": "atoms as training starts"}
SHOWN = 8


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Area and participation of codes and atoms of each model, with those of chance."""
    began = time.perf_counter()
    bed, seeds = (Bed(40, 10, 1), 1) if quick else (Bed(), seeds)
    values: dict[str, dict[str, list[float]]] = {}
    atoms, rates = {}, {}
    for kind in NAMES:
        for matching in MATCHINGS:
            of, k = f"{kind}/{matching}", COMPARED[matching]
            rates[of] = tuned(bed, kind, matching)
            for seed in range(seeds):
                found = Dictionary.of(trained(bed, kind, matching, k, rates[of], seed), bed.test)
                start = started(bed, kind, matching, k, 1000 + seed)
                for name, value in measure(found, start, bed, seed).items():
                    values.setdefault(of, {}).setdefault(name, []).append(value)
                atoms.setdefault(of, shown(found))
            print(of, values[of], flush=True)
    settings = {
        "bed": {"n_train": bed.n_train, "n_test": bed.n_test, "n_epochs": bed.n_epochs},
        "seeds": seeds,
        "rates": rates,
        "images": {name: float(value.mean()) for name, value in locality(bed.test).items()},
    }
    rows = [row(values, what, matching) for what in ("codes", "atoms") for matching in MATCHINGS]
    figure = draw(values, atoms)
    write(__file__, output, rows=rows, values=values, figure=figure, settings=settings, started=began)


@torch.no_grad()
def measure(found: Dictionary, start: ns.SAE, bed: Bed, seed: int) -> dict[str, float]:
    """Means over the codes that are on, and over the atoms of living concepts; of these by their energy, too."""
    codes, fresh = (expressed(sae, bed.test) for sae in (found.sae, start))
    random = torch.Generator().manual_seed(seed)
    fields = {
        "codes": codes,
        "codes, Gaussian": gaussian(codes, random),
        "codes, started": fresh,
        "atoms": found.atoms,
        "atoms, started": start.atoms(range(start.n_concepts), (SIZE, SIZE)),
    }
    means = {f"{of}/{name}": float(x.mean()) for of, field in fields.items() for name, x in locality(field).items()}
    share = energies(found) / energies(found).sum()
    return means | {f"atoms, by energy/{name}": float(share @ x) for name, x in locality(found.atoms).items()}


def energies(found: Dictionary) -> Tensor:
    """What each living concept writes, were its codes white, ``(n,)``."""
    return found.codes.double().square().flatten(1).sum(1) * found.atoms.double().square().flatten(1).sum(1)


def expressed(sae: ns.SAE, x: Tensor) -> Tensor:
    """The codes that are not zero everywhere, ``(n, 1, *grid)``."""
    codes = sae.encode(x)
    return codes.keep(codes.expressed()).values[:, None].contiguous()


def gaussian(fields: Tensor, random: torch.Generator) -> Tensor:
    """White noise filtered to have the spectrum of each field."""
    noise = torch.fft.rfft2(torch.randn(fields.shape, generator=random))
    return torch.fft.irfft2(noise * torch.fft.rfft2(fields).abs() / fields[0].numel() ** 0.5, s=fields.shape[-2:])


def locality(fields: Tensor) -> dict[str, Tensor]:
    """Of fields ``(n, 1, *grid)`` that are not zero: the share of the area that holds 90 % of the energy, at the best, and the
    participation, ``(n,)`` each."""
    energy = fields.double().square().sum(1)
    energy = energy[energy.flatten(1).sum(1) > 0]
    return {"area": energy_area(energy), "participation": participation(energy)}


def row(values: dict[str, dict[str, list[float]]], what: str, matching: str) -> Row:
    """A row on codes, or on atoms."""

    def of(kind: str, name: str) -> list[float]:
        return values[f"{kind}/{matching}"][name]

    def text(kind: str) -> str:
        listed = [name for name in OF if name.startswith(what)]
        measures = (f"{OF[name]} {spread(of(kind, f'{name}/area'))}" for name in listed)
        return f"{NAMES[kind]}: {', '.join(measures)}"

    ours = of("fno", f"{what}/area")
    # At equal nonzeros the codes have fewer points than a Gaussian field ever needs: nothing to test.
    trivial = "codes, Gaussian" if matching == "nonzeros" else ""
    chance = [name for name in OF if name.startswith(f"{what}, ") and name != trivial]
    criteria = [
        Criterion(
            f"{OF[name]}: SAE-FNO needs at most half of their area, every seed",
            all(a <= 0.5 * b for a, b in zip(ours, of("fno", f"{name}/area"), strict=True)),
        )
        for name in chance
    ]
    if what == "atoms":
        below = max(ours) < min(of("mlp", "atoms/area"))
        criteria.append(Criterion("atoms of SAE-MLP: SAE-FNO needs less area, every pair of seeds", below))
    listed = "; ".join(
        f"{NAMES[kind]} {spread(of(kind, f'{what}/participation'))}, started "
        f"{spread(of(kind, f'{what}, started/participation'))}"
        for kind in NAMES
    )
    remark = f"Participation instead: {listed}."
    if what == "codes":
        remark += " A code of SAE-MLP is a number, the same everywhere, by construction."
        remark += " The rule alone picks few points, of a model as it starts too." * (matching == "nonzeros")
    else:
        weighted = "; ".join(f"{NAMES[kind]} {spread(of(kind, 'atoms, by energy/area'))}" for kind in NAMES)
        remark += f" Areas weighted by the energy of concepts: {weighted}."
        remark += " They start from windowed parts of images, so that atoms are local before anything is learned."
        remark += " The atoms of SAE-CNN have 81 of 1024 points by construction."
    return Row(
        f"images of characters: {what} of concepts as operators are localised, {MATCHINGS[matching]}",
        f"share of the {MEASURES['area']}, {COMPARED[matching]} per image, held out",
        text("fno"),
        f"{text('cnn')}; {text('mlp')}",
        criteria,
        remark,
    )


def shown(found: Dictionary) -> Tensor:
    """The atoms of the concepts with the most energy, the middle of each in the middle."""
    some = found.atoms[energies(found).topk(min(SHOWN, len(found.atoms))).indices]
    return some[:, 0] if isinstance(found.sae, ns.SAEMLP) else centre(some, found.sae.basis)[:, 0]


def draw(values: dict[str, dict[str, list[float]]], atoms: dict[str, Tensor]) -> Figure:
    """Areas of codes and atoms with those of chance, and some atoms of seed 0; a row for each matching."""
    figure, axes = subplots(len(MATCHINGS), 2, 4.4, 3.0)
    for (areas, pictures), (matching, title) in zip(axes, MATCHINGS.items(), strict=True):
        for i, (kind, color) in enumerate(zip(NAMES, PALETTE, strict=False)):
            for at, name in enumerate(OF):
                found = values[f"{kind}/{matching}"][f"{name}/area"]
                areas.plot([at + 0.2 * (i - 1)] * len(found), found, "o", color=color, ms=4, label=None if at else NAMES[kind])
        areas.set(ylabel="area of 90 % of the energy", yscale="log", title=title)
        areas.set_xticks(range(len(OF)), ["codes", "codes,\nGaussian", "codes,\nstarted", "atoms", "atoms,\nstarted"])
        draw_atoms(pictures, {kind: atoms[f"{kind}/{matching}"] for kind in NAMES})
        pictures.set(title="atoms of the most energy, seed 0")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("Images of characters: where codes and atoms are")
    return figure


def draw_atoms(ax: Any, atoms: dict[str, Tensor]) -> None:
    """A line of atoms for each model, each over its own largest value."""
    sheet = torch.zeros(len(atoms) * SIZE, SHOWN * SIZE)
    for line, some in enumerate(atoms.values()):
        for column, atom in enumerate(some):
            place = (slice(line * SIZE, (line + 1) * SIZE), slice(column * SIZE, (column + 1) * SIZE))
            sheet[place] = atom / atom.abs().max().clamp_min(1e-12)
    ax.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
    for edge in range(0, SHOWN * SIZE + 1, SIZE):
        ax.axvline(edge - 0.5, color="black", lw=0.4)
    for edge in range(0, len(atoms) * SIZE + 1, SIZE):
        ax.axhline(edge - 0.5, color="black", lw=0.4)
    ax.set_xticks([])
    ax.set_yticks([SIZE // 2 + line * SIZE for line in range(len(atoms))], [NAMES[kind] for kind in atoms])


if __name__ == "__main__":
    typer.run(main)
