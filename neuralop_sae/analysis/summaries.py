"""What figures and report say about concepts, as numbers: energy, use, strongest samples, atoms, spectra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attach.capture import eval_mode
from ..codes import ConceptCodes, concatenate
from ..data.indexed import IndexedActivations
from ..metrics import FieldStatistics, by_shell, energy_quantile_count
from ..models.base import SAE
from ..models.spectral import SpectralSAE


def concept_energy(codes: ConceptCodes, sae: SAE) -> Tensor:
    """Decoded energy of each concept, ``|code|^2 * |kernel|^2`` summed over samples: ``(n_concepts,)``,
    float64."""
    energy = torch.zeros(codes.n_concepts, dtype=torch.float64, device=codes.values.device)
    energy.index_add_(0, codes.concept, codes.norms().detach().double().square())
    return energy.cpu() * sae.kernel_norms().detach().cpu().double().square()


def strongest_concepts(codes: ConceptCodes, sae: SAE, n: int) -> tuple[Tensor, Tensor]:
    """The concepts that carry most of the decoded energy.

    Parameters
    ----------
    codes : ConceptCodes
        Codes of any number of samples.
    sae : SAE
        The model they come from.
    n : int
        How many; at most the size of the dictionary are returned.

    Returns
    -------
    concepts, shares : Tensor
        Indices ``(n,)``, strongest first, and their shares of the energy of all concepts, ``(n,)`` in
        float64.
    """
    return rank_energy(concept_energy(codes, sae), n)


def rank_energy(energy: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """As :func:`strongest_concepts`, from energies ``(n_concepts,)``."""
    order = energy.argsort(descending=True, stable=True)[:n]
    return order, energy[order] / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)


def has_pointwise_part(sae: SAE) -> bool:
    """Whether concepts have a pointwise part beside a spectral one, which atoms can be shown without."""
    return isinstance(sae, SpectralSAE) and sae.concept_decoder.skip is not None


def leading_components(
    sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int], **part: bool
) -> tuple[Tensor, Tensor]:
    """The one map that tells most about each atom: its leading principal component over channels.

    Parameters
    ----------
    sae : SAE
        The model.
    concepts : sequence of int
        n concepts.
    shape : sequence of int
        Grid of the maps.
    **part : bool
        Passed on to the model's ``atoms``.

    Returns
    -------
    components, shares : Tensor
        Maps ``(n, *shape)`` in float64, normalised units, with the sign that makes their extreme value
        positive, and the share of the atom's energy that each holds, ``(n,)``.
    """
    atoms = sae.atoms(concepts, shape, **part).detach().cpu().double()
    basis = sae.basis
    weighted = (atoms * basis.quadrature(shape, like=atoms)).flatten(2)
    energies, directions = torch.linalg.eigh(weighted @ atoms.flatten(2).transpose(1, 2))
    maps = torch.einsum("nm,nmp->np", directions[..., -1], atoms.flatten(2))
    extreme = maps.gather(1, maps.abs().argmax(1, keepdim=True))
    shares = energies[:, -1] / energies.sum(1).clamp_min(torch.finfo(energies.dtype).tiny)
    return (maps * torch.where(extreme < 0, -1.0, 1.0)).reshape(len(atoms), *shape), shares


@dataclass(frozen=True)
class AtomSpectra:
    """Energy of atoms by wavenumber, or by what takes its place in the model's basis: the degree on a sphere.

    Parameters
    ----------
    wavenumbers : Tensor
        ``(s,)``: number of each shell, in what the basis calls its ``wavenumber_label``.
    energy : Tensor
        ``(n, s)`` in float64. Where the grid holds all modes a row sums to the square of the kernel's norm.
    impulse : Tensor
        ``(s,)``: energy of the unit impulse in each shell.
    """

    wavenumbers: Tensor
    energy: Tensor
    impulse: Tensor

    def gain(self) -> Tensor:
        """Energy in each shell relative to that of a unit impulse of the atom's norm, ``(n, s)``: ones for
        a concept that only copies its code from point to point."""
        tiny = torch.finfo(self.energy.dtype).tiny
        return self.energy / self.energy.sum(1, keepdim=True).clamp_min(tiny) * self.impulse.sum() / self.impulse

    def dominant(self) -> Tensor:
        """The wavenumber at which each concept responds most, energy counted per mode, ``(n,)``."""
        return self.wavenumbers[self.gain().argmax(1)]


def atom_spectra(sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int] | None = None) -> AtomSpectra:
    """Spectra of atoms over shells of equal wavenumber, rounded to whole numbers.

    Parameters
    ----------
    sae : SAE
        The model.
    concepts : sequence of int
        n concepts.
    shape : sequence of int, optional
        Grid on which the atoms are evaluated. By default the smallest that holds all modes.
    """
    shape = sae.atom_grid if shape is None else shape
    basis = sae.basis.resolved_by(shape)
    written = sae.atoms(concepts, shape).detach().cpu().double()
    impulse = sae.basis.synthesis(sae.basis.impulse(like=written), shape)
    shells = basis.wavenumbers().round().long()
    energy, unit = (
        by_shell(basis.weights(shape, like=field) * basis.analysis(field).abs().square(), shells)
        for field in (written, impulse)
    )
    held = unit > 1e-9 * unit.max()
    return AtomSpectra(torch.arange(len(unit))[held], energy.sum(1)[:, held], unit[held])


def code_of(codes: ConceptCodes, concept: int, sample: int) -> Tensor | None:
    """The code ``(*code_grid)`` of one concept in one sample; None if it is off."""
    rows = ((codes.concept == concept) & (codes.sample == sample)).nonzero()[:, 0]
    return codes.values[rows[0]].detach().cpu() if len(rows) else None


def dominant_concepts(codes: ConceptCodes, sae: SAE, named: Sequence[int], sample: int) -> Tensor:
    """Which concept is strongest at each point, ``(*code_grid)`` int64: its position in `named`,
    ``len(named)`` for any other, -1 where none is expressed."""
    rows = (codes.sample == sample).nonzero()[:, 0]
    if not len(rows):
        return torch.full(codes.grid, -1)
    norms = sae.kernel_norms().detach().to(codes.values)[codes.concept[rows]]
    strength = codes.values[rows].detach().abs() * norms.view(-1, *(1,) * len(codes.grid))
    top = strength.max(0)
    position = torch.full((codes.n_concepts,), len(named))
    position[list(named)] = torch.arange(len(named))
    return torch.where(top.values > 0, position[codes.concept[rows].cpu()][top.indices.cpu()], -1)


@dataclass(frozen=True)
class ConceptSummary:
    """A dictionary's use over a set of activations; tensors are on the CPU, in float64 where real.

    Parameters
    ----------
    energy, share, frequency, area, kernel_norm : Tensor
        ``(n_concepts,)``: decoded energy, its share of the total, fraction of samples in which the concept is
        on, mean fraction of the domain where it is expressed in these (0 if it never is), norm of its kernel.
    samples, norms : Tensor
        ``(n_concepts, n)``: the samples with the largest code norm, strongest first, and these norms; zero
        where a concept is on in fewer samples.
    on : Tensor
        Boolean ``(N, n_concepts)``: whether a concept is on in a sample.
    metrics : dict of str to float
        ``fve``, ``relative_l2``, ``l0``, ``l0_local``, ``dead_fraction``, ``c90`` over the same activations.
    """

    energy: Tensor
    share: Tensor
    frequency: Tensor
    area: Tensor
    kernel_norm: Tensor
    samples: Tensor
    norms: Tensor
    on: Tensor
    metrics: dict[str, float]


@torch.no_grad()
def summarize(
    sae: SAE, activations: Tensor | IndexedActivations, *, n_samples: int = 4, batch_size: int = 16
) -> ConceptSummary:
    """Sum up each concept's use over activations ``(N, channels, *grid)``, in batches and in eval mode.

    No more than one batch of codes is held at a time.
    """
    p, fields = sae.n_concepts, FieldStatistics()
    square, count, area = (torch.zeros(p, dtype=torch.float64) for _ in range(3))
    samples, norms = torch.zeros(p, 0, dtype=torch.int64), torch.zeros(p, 0, dtype=torch.float64)
    on = torch.zeros(len(activations), p, dtype=torch.bool)
    with eval_mode(sae):
        for first in range(0, len(activations), batch_size):
            x = activations[first : first + batch_size].to(sae.mean.device)
            out = sae(x)
            fields.update(x, out.reconstruction, out.codes.basis.quadrature(x.shape[2:], like=x))
            codes = out.codes.detach().cpu()
            norm = codes.norms().double()
            square.index_add_(0, codes.concept, norm.square())
            count += torch.bincount(codes.concept[norm > 0], minlength=p)
            area.index_add_(0, codes.concept, expressed_area(codes))
            table = torch.zeros(codes.n_samples, p, dtype=torch.float64)
            table[codes.sample, codes.concept] = norm
            on[first : first + len(table)] = table > 0
            norms, order = torch.cat([norms, table.T], 1).topk(min(n_samples, norms.shape[1] + len(table)), 1)
            index = torch.arange(first, first + len(table)).expand(p, -1)
            samples = torch.cat([samples, index], 1).gather(1, order)
    n, kernel_norm = len(activations), sae.kernel_norms().detach().cpu().double()
    energy = square * kernel_norm.square()
    metrics = {
        "fve": fields.fve(),
        "relative_l2": fields.relative_l2(),
        "l0": float(count.sum() / n),
        "l0_local": float(area.sum() / n),
        "dead_fraction": float((count == 0).double().mean()),
        "c90": float(energy_quantile_count(energy)),
    }
    share = energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return ConceptSummary(energy, share, count / n, area / count.clamp_min(1), kernel_norm, samples, norms, on, metrics)


def expressed_area(codes: ConceptCodes) -> Tensor:
    """Fraction of the domain, by quadrature, where each code differs from zero, ``(n,)`` in float64."""
    on = (codes.values != 0).double()
    return (on * codes.basis.quadrature(codes.grid, like=on)).flatten(1).sum(1)


@torch.no_grad()
def codes_of_samples(
    sae: SAE,
    activations: Tensor | IndexedActivations,
    samples: Sequence[int],
    *,
    concepts: Tensor | None = None,
    batch_size: int = 16,
) -> ConceptCodes:
    """Codes of some samples on the CPU, in the order given, of all concepts or of some."""
    parts = []
    with eval_mode(sae):
        for first in range(0, len(samples), batch_size):
            x = activations[list(samples[first : first + batch_size])].to(sae.mean.device)
            codes = sae.encode(x).detach().cpu()
            parts.append(codes if concepts is None else codes.keep(torch.isin(codes.concept, concepts)))
    return concatenate(parts)
