"""Which learned concept is which true one, and how like it: kernels compared over what leaves an autoencoder the same.

A concept can be renumbered and scaled, and on a periodic box its kernel moved one way and its code the other: none of this
changes a reconstruction, and none of it changes a matched cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..layers.basis import SpectralBasis
from ..models.base import SAE

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Matching:
    """A one-to-one assignment of learned atoms to true ones.

    Parameters
    ----------
    cosine : Tensor
        ``(q,)``, float64: of each true atom and the learned one assigned to it; 0 where none is left to assign.
    learned : Tensor
        ``(q,)``, int64: which; -1 where none is left.
    shift : Tensor
        ``(q, n_dim)``, float64, in shares of the domain along each axis: moved by it, the learned atom is most like the true
        one. Where the true concept has an event at t, the learned code has it at t + shift.
    """

    cosine: Tensor
    learned: Tensor
    shift: Tensor

    @property
    def matched_cosine(self) -> float:
        """Mean over the true atoms."""
        return float(self.cosine.mean())


def match_atoms(
    learned: Tensor,
    true: Tensor,
    basis: SpectralBasis,
    *,
    alive: Tensor | None = None,
    signed: bool = True,
    translate: bool = True,
) -> Matching:
    r"""Assign learned atoms to true ones so that the sum of the cosines is largest (Hungarian assignment) of

    .. math:: \max_T \frac{\langle T d, d'\rangle}{\|d\|\,\|d'\|},

    inner products and norms over all channels and, by quadrature, over the domain. T are the translations by grid points, one
    for all channels, where the basis is equivariant; a kernel that lies between grid points needs a finer grid, on which both
    kinds of atoms are the same functions. Elsewhere T is the identity: on the sphere atoms stand in one place, and the cosine
    of zonal ones is that of their spectra by degree.

    Parameters
    ----------
    learned : Tensor
        ``(p, channels, *grid)``.
    true : Tensor
        ``(q, channels, *grid)``; or of another model, or seed.
    basis : SpectralBasis
        Of the domain.
    alive : Tensor, optional
        Boolean ``(p,)``: the learned atoms that may be assigned.
    signed : bool
        Whether an atom and its negative differ. They do where codes are not negative; False is for codes of either sign
        (:class:`~neuralop_sae.Identity`).
    translate : bool
        False compares atoms where they stand on every domain, for models whose concepts do not move.

    Returns
    -------
    Matching

    Raises
    ------
    ValueError
        If the shapes do not fit each other or the basis, or an atom holds a NaN or infinity.

    Examples
    --------
    >>> from neuralop_sae import FourierBasis
    >>> atoms = torch.randn(4, 2, 16)
    >>> matching = match_atoms(atoms.flip(0).roll(3, -1), atoms, FourierBasis(5))
    >>> matching.learned.tolist(), round(matching.matched_cosine, 6), matching.shift[0].item() * 16
    ([3, 2, 1, 0], 1.0, 13.0)
    """
    if learned.shape[1:] != true.shape[1:] or learned.ndim != basis.n_dim + 2 or not len(true):
        raise ValueError(
            f"learned and true atoms are (n, channels, *grid) of one grid of {basis.n_dim} dimensions, got "
            f"{tuple(learned.shape)} and {tuple(true.shape)}"
        )
    if alive is not None and alive.shape != learned.shape[:1]:
        raise ValueError(f"alive has one entry per learned atom, ({len(learned)},), got {tuple(alive.shape)}")
    for name, atoms in (("learned", learned), ("true", true)):
        if not atoms.isfinite().all():
            raise ValueError(f"{name} atoms hold a NaN or infinity: has training diverged?")
    index = torch.arange(len(learned)) if alive is None else alive.cpu().nonzero()[:, 0]
    cosines, places = pair_cosines(learned[index.to(learned.device)], true, basis, signed, translate)
    rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(cosines.numpy(), maximize=True))
    cosine = torch.zeros(len(true), dtype=torch.float64).index_copy(0, columns, cosines[rows, columns])
    assigned = torch.full((len(true),), -1).index_copy(0, columns, index[rows])
    grid = tuple(true.shape[2:])
    shift = torch.zeros(len(true), len(grid), dtype=torch.float64)
    along = torch.unravel_index(places[rows, columns], grid)
    shift[columns] = torch.stack(along, 1) / torch.tensor(grid, dtype=torch.float64)
    return Matching(cosine, assigned, shift)


def pair_cosines(learned: Tensor, true: Tensor, basis: SpectralBasis, signed: bool, translate: bool) -> tuple[Tensor, Tensor]:
    """Largest cosines ``(p, q)`` over the translations, and the flat index of the grid point that gives each."""
    grid = tuple(true.shape[2:])
    measure = basis.quadrature(grid, like=true.double()).sqrt()
    a, b = (_unit(atoms.detach().double() * measure) for atoms in (learned, true))
    best = torch.zeros(len(a), len(b), dtype=torch.float64)
    place = torch.zeros(len(a), len(b), dtype=torch.int64)
    if not (translate and basis.equivariant):
        product = a.flatten(1) @ b.flatten(1).T
        return (product if signed else product.abs()).cpu(), place
    dims = tuple(range(-len(grid), 0))
    spectra = torch.fft.rfftn(b, dim=dims)
    for rows in torch.arange(len(a)).split(max(1, _CHUNK_BYTES // (16 * b.numel()))):
        spectrum = torch.fft.rfftn(a[rows.to(a.device)], dim=dims).conj()
        correlation = torch.fft.irfftn(torch.einsum("pc...,qc...->pq...", spectrum, spectra), s=grid, dim=dims).flatten(2)
        peak = (correlation if signed else correlation.abs()).max(-1)
        best[rows], place[rows] = peak.values.cpu(), peak.indices.cpu()
    return best, place


def _unit(atoms: Tensor) -> Tensor:
    """Of norm one; an atom that is zero stays so."""
    return torch.nn.functional.normalize(atoms.flatten(1), dim=1, eps=1e-300).reshape(atoms.shape)


class Chance(NamedTuple):
    """Matched cosines of dictionaries that learned nothing.

    Parameters
    ----------
    mean, std : float
        Over the draws.
    """

    mean: float
    std: float


def chance_cosine(
    sae: SAE,
    true: Tensor,
    *,
    n_atoms: int | None = None,
    n_draws: int = 5,
    seed: int = 0,
    signed: bool = True,
    translate: bool = True,
) -> Chance:
    """The matched cosine of models like this one as they are made, before any training.

    It is far from zero: the best of p atoms in the best of all places is like many things, and the more so the fewer modes
    an atom has and the more atoms there are to choose from.

    Parameters
    ----------
    sae : SAE
        The model whose arguments are used; its weights are not.
    true, signed, translate
        As in :func:`match_atoms`.
    n_atoms : int, optional
        Atoms to choose from: as many as were offered to :func:`match_atoms`, where some of the model's concepts are dead. By
        default all.
    n_draws : int
        Models made, at least 2.
    seed : int
        Of the first; the global generator is left as it is.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=8, n_modes=(17,), skip=None)
    >>> 0.2 < chance_cosine(sae, torch.randn(5, 1, 32)).mean < 0.8
    True
    """
    if n_draws < 2:
        raise ValueError(f"a spread needs at least 2 draws, got n_draws={n_draws}")
    found = []
    for draw in range(n_draws):
        fresh = untrained(sae, seed + draw)
        atoms = fresh.atoms(range(fresh.n_concepts if n_atoms is None else n_atoms), true.shape[2:])
        matching = match_atoms(atoms, true.cpu(), fresh.basis, signed=signed, translate=translate)
        found.append(matching.matched_cosine)
    return Chance(float(torch.tensor(found).mean()), float(torch.tensor(found).std()))


def untrained(sae: SAE, seed: int) -> SAE:
    """A model of the same arguments as it is made, before any training; the global generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(sae)(**sae.config())


def centre(atoms: Tensor, basis: SpectralBasis) -> Tensor:
    """Atoms moved so that their energy is in the middle of the grid, the point ``size // 2`` of each axis. Where the basis is
    not equivariant they stay.

    The middle of the energy is that of a circle, the angle of its first Fourier coefficient along each axis, rounded to a grid
    point. The result is the same wherever an atom was, unless that coefficient is zero: energy spread evenly has no middle.

    Parameters
    ----------
    atoms : Tensor
        ``(n, channels, *grid)``.
    basis : SpectralBasis
        Of the domain.
    """
    if not basis.equivariant:
        return atoms
    energy = atoms.detach().double().square().sum(1)
    moved = atoms
    for axis in range(-basis.n_dim, 0):
        n = atoms.shape[axis]
        others = tuple(d for d in range(-basis.n_dim, 0) if d != axis)
        along = energy.sum(others) if others else energy
        turns = torch.fft.fft(along)[:, 1 % n].angle() / (2 * torch.pi)  # minus the place, in turns
        # Symmetric atoms often lie half way between two points: rounding must take the same one wherever they are.
        shift = n // 2 + (turns * n + 1e-6).round().long()
        index = (torch.arange(n, device=atoms.device) - shift[:, None]) % n
        moved = torch.stack([atom.index_select(axis, order) for atom, order in zip(moved, index, strict=True)])
    return moved
