r"""The shape of concepts: energy by wavenumber, dominant scale, direction, and where they are on; of codes and of kernels.

Of codes all sums run over the samples in which a concept is on, of kernels over channels.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ..attach.capture import eval_mode
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..layers.basis import SpectralBasis
from ..layers.fourier import FourierBasis
from ..metrics import by_shell
from ..models.base import SAE
from .calculus import Calculus, PeriodicBox, WalledBox, calculus_of

_CHUNK = 64  # kernels at a time


@torch.no_grad()
def concept_spectra(
    sae: SAE,
    acts: Tensor | IndexedActivations,
    *,
    calculus: Calculus | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> xr.Dataset:
    r"""Spectra, scales, directions and places of all concepts, of their codes over activations and of their kernels.

    Parameters
    ----------
    sae : SAE
        The model; its training flags are restored.
    acts : Tensor, or activations of a store or stream
        Activations ``(N, channels, *grid)``.
    calculus : Calculus, optional
        The domain, with its lengths. By default the unit sphere, or a periodic box of the lengths that the activations of a
        store or stream know, else of unit ones.
    batch_size : int
        Fields encoded at a time.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        Over ``concept``; ``wavenumber``, in cycles per unit of length, in shells as wide as one cycle along the longest axis,
        or degrees l; and ``axis``, those of the domain (east and north). Each of these twice, of the code and of the kernel,
        as in ``code_energy`` and ``kernel_energy``:

        ``_energy``
            Mean square by wavenumber: sums to the code's, over the samples in which the concept is on, and to the square of
            the kernel's norm on the codes' grid.
        ``_scale``
            Length of the wave of the mean wavenumber by energy, the mean of the field left out;
            :math:`2\pi a/\sqrt{l(l+1)}` on a sphere of radius a.
        ``_anisotropy``, ``_direction``
            Of the mean :math:`M = \langle\nabla z\,\nabla z^T\rangle`, which on a box is the second moment of the spectrum:
            :math:`(\lambda_1 - \lambda_d)/(\lambda_1 + \lambda_d)` of its largest and smallest eigenvalue, 0 for a code that
            varies alike in all directions and 1 for plane waves; and the unit vector of the largest, along which it varies
            most.
        ``_centre``, ``_spread``
            Of the density z^2: circular means on a box that closes; latitude and longitude, in degrees, on a sphere; and the
            root mean square distance from there. See :meth:`~neuralop_sae.analysis.calculus.Calculus.centre`.

        Of codes also ``extent``, the spread within one sample, in the mean by energy; and ``frequency``, the share of the
        samples in which the concept is on. NaN for a concept that never is.

    Raises
    ------
    ValueError, TypeError
        If the activations do not fit the model or the domain.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=4, n_modes=(5, 5), concept_rule=ns.TopK(2))
    >>> spectra = concept_spectra(sae, torch.randn(6, 1, 8, 8))
    >>> dict(spectra.sizes)
    {'concept': 4, 'wavenumber': 5, 'axis': 2}
    """
    acts = opened(acts)
    domain = calculus or calculus_of(sae.basis, acts.lengths if isinstance(acts, IndexedActivations) else None)
    codes_of, on = None, torch.zeros(sae.n_concepts, dtype=torch.int64)
    with eval_mode(sae):
        for first in tqdm(range(0, len(acts), batch_size), desc="spectra", disable=not progress):
            codes = sae.encode(acts[first : first + batch_size].to(sae.mean.device)).detach().cpu()
            codes_of = codes_of or _Shapes(sae.n_concepts, codes.basis, domain, codes.grid)
            expressed = codes.expressed()
            codes_of.update(codes.concept[expressed], codes.values[expressed])
            on += torch.bincount(codes.concept[expressed], minlength=len(on))
        if codes_of is None:
            raise ValueError(f"no samples in activations of shape {tuple(acts.shape)}")
        kernels = _Shapes(sae.n_concepts, codes.basis, domain, codes.grid)
        for part in torch.arange(sae.n_concepts).split(_CHUNK):
            atoms = sae.atoms(part, codes.grid).detach().cpu()
            kernels.update(part.repeat_interleave(atoms.shape[1]), atoms.flatten(0, 1))
    shares = (on / len(acts)).double().where(on > 0, 0.0)
    found = {f"code_{name}": value for name, value in codes_of.variables(on.double()).items()}
    found |= {f"kernel_{name}": value for name, value in kernels.variables(torch.ones_like(shares)).items()}
    found |= {"extent": (("concept",), codes_of.extent), "frequency": (("concept",), shares)}
    data = {name: (dims, value.numpy()) for name, (dims, value) in found.items()}
    coordinates = {"concept": range(sae.n_concepts), "wavenumber": codes_of.wavenumber.numpy(), "axis": range(domain.n_dim)}
    return xr.Dataset(data, coordinates)


class _Shapes:
    """Sums over fields of each concept, from which the shape of a concept follows."""

    def __init__(self, n_concepts: int, basis: SpectralBasis, domain: Calculus, grid: tuple[int, ...]) -> None:
        like = torch.zeros((), dtype=torch.float64)
        self._domain, self._basis = domain, basis.resolved_by(grid)
        self._number, width = _wavenumbers(self._basis, domain)
        self._shell = (self._number / width).round().long()
        self.wavenumber = torch.arange(int(self._shell.max()) + 1) * width
        self._weights = self._basis.weights(grid, like=like)
        self._measure = basis.quadrature(grid, like=like)
        self._places = domain.places(grid)
        sizes = {
            "energy": (len(self.wavenumber),),
            "number": (2,),
            "slope": (domain.n_dim, domain.n_dim),
            "place": (1 + len(self._places),),
            "extent": (1,),
        }
        self._sums = {name: like.new_zeros(n_concepts, *size) for name, size in sizes.items()}

    def update(self, concept: Tensor, values: Tensor) -> None:
        """Add fields ``(n, *grid)`` of the concepts ``(n,)``."""
        values, axes = values.double(), tuple(range(1, values.ndim))
        power = self._weights * self._basis.analysis(values).abs().square()
        waves = power * (self._number > 0)
        slopes = self._domain.gradient(values)
        weighted = slopes * self._measure
        density = values.square() * self._measure
        mass = density.sum(axes)
        places = torch.einsum("np,mp->nm", density.flatten(1), self._places.flatten(1))
        spread = self._domain.centre(places / mass[:, None])[1]
        terms = {
            "energy": by_shell(power, self._shell),
            "number": torch.stack([waves.sum(axes), (waves * self._number).sum(axes)], 1),
            "slope": torch.einsum("nip,njp->nij", weighted.flatten(2), slopes.flatten(2)),
            "place": torch.cat([mass[:, None], places], 1),
            "extent": (mass * spread)[:, None],
        }
        for name, term in terms.items():
            self._sums[name].index_add_(0, concept, term)

    @property
    def extent(self) -> Tensor:
        """Mean spread of one field, by energy, ``(n_concepts,)``."""
        return self._sums["extent"][:, 0] / self._sums["place"][:, 0]

    def variables(self, count: Tensor) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Of each concept, of so many fields ``(n_concepts,)``."""
        waves, moment = self._sums["number"].unbind(1)
        strength, direction = _anisotropy(self._sums["slope"])
        mass = self._sums["place"][:, :1]
        centre, spread = self._domain.centre(self._sums["place"][:, 1:] / mass)
        return {
            "energy": (("concept", "wavenumber"), self._sums["energy"] / count[:, None]),
            "scale": (("concept",), self._domain.wavelengths(moment / waves)),
            "anisotropy": (("concept",), strength),
            "direction": (("concept", "axis"), direction),
            "centre": (("concept", "axis"), centre),
            "spread": (("concept",), spread),
        }


def _wavenumbers(basis: SpectralBasis, domain: Calculus) -> tuple[Tensor, float]:
    """Of each mode, and the width of a shell."""
    if not (isinstance(basis, FourierBasis) and isinstance(domain, PeriodicBox | WalledBox)):
        return basis.wavenumbers(), 1.0
    pairs = zip(basis.frequencies(), domain.lengths, strict=True)
    axes = [torch.tensor(list(k), dtype=torch.float64) / length for k, length in pairs]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0), 1 / max(domain.lengths)


def _anisotropy(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Strength ``(n,)`` and direction ``(n, d)`` of second moments ``(n, d, d)``; NaN where they are zero."""
    values, vectors = torch.linalg.eigh(moment)
    strength = (values[:, -1] - values[:, 0].clamp_min(0.0)) / (values[:, -1] + values[:, 0].clamp_min(0.0))
    direction = vectors[..., -1]
    leading = direction.gather(1, direction.abs().argmax(1, keepdim=True)).sign()
    return strength, (direction * leading).where(values[:, -1:] > 0, torch.nan)
