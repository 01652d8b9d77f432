r"""Fields made of known concepts, for asking whether a sparse autoencoder finds them.

.. math:: x_i(s) = \sum_c \int \kappa_{ci}(s, t)\,z_c(t)\,dt + \varepsilon_i(s), \qquad
          z_c = \sum_e a_e\,\delta_{t_e}

The kernels, the events (their positions t and amplitudes a) and the noise are functions, evaluated in closed form at the
points of a grid: no array is ever resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import at_least, positive
from .concepts import Kernels
from .domains import Domain
from .trajectories import sample_seed

__all__ = ["Events", "SyntheticConcepts", "SyntheticData"]

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Events:
    """When and where known concepts fire, sorted by sample.

    Parameters
    ----------
    sample, concept : torch.Tensor
        Shape (n,), int64.
    position : torch.Tensor
        Shape (n, n_dim), float64, in physical units; see :mod:`~neuralop_sae.data.domains`.
    amplitude : torch.Tensor
        Shape (n,), float64.
    """

    sample: Tensor
    concept: Tensor
    position: Tensor
    amplitude: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def of(self, rows: Tensor) -> Events:
        """Some of the events, by a boolean ``(n,)`` or indices."""
        return Events(self.sample[rows], self.concept[rows], self.position[rows], self.amplitude[rows])


@dataclass(frozen=True)
class SyntheticConcepts:
    r"""A generative model with known concepts.

    Parameters
    ----------
    kernels : Kernels
        The concepts: :class:`~neuralop_sae.data.concepts.Gabors` on a periodic box,
        :class:`~neuralop_sae.data.concepts.ZonalKernels` on the sphere.
    rate : float or sequence of float
        Events of each concept per unit length, area or volume of the box, or per sphere. Their number in a field is Poisson,
        their positions are uniform.
    amplitudes : (float, float)
        Smallest and largest; uniform between.
    correlation : float
        Of the numbers of events of two concepts in a unit cell (or on the sphere), in [0, 1]: a share of the rarest concept's
        events, at that, comes to all concepts at once, each at a place of its own. For rates r and r' the correlation is
        ``correlation * min(rate) / sqrt(r * r')``.
    snr_db : float, optional
        Power of the events over power of the noise, in decibels: the noise is as strong in each channel. Without it, there
        is none. The power of the events is ``sum(rate * E[a^2])``; with correlation 0 that is the variance of the signal at a
        point, summed over the channels.
    noise_band : int, optional
        The noise has every wavenumber up to this (cycles per unit length along each axis; degrees on the sphere) at the same
        power, and is the same function on every grid; on ``2 * noise_band + 1`` points per unit length it is white. Without
        it, it is drawn at each point by itself, anew on each grid.

    Raises
    ------
    ValueError
        If a number is not allowed.

    Examples
    --------
    >>> from neuralop_sae.data.concepts import Gabors
    >>> model = SyntheticConcepts(Gabors(5, wavenumbers=(0, 7)), snr_db=0.0, noise_band=63)
    >>> data = model.sample(100, (128,), seed=1)
    >>> data.x.shape, model.atoms((128,)).shape
    (torch.Size([100, 1, 128]), torch.Size([5, 1, 128]))

    The same functions on a finer grid:

    >>> torch.allclose(data.on((256,)).x[..., ::2], data.x, atol=1e-5)
    True
    """

    kernels: Kernels[Any]
    rate: float | Sequence[float] = 0.4
    amplitudes: tuple[float, float] = (0.5, 1.5)
    correlation: float = 0.0
    snr_db: float | None = None
    noise_band: int | None = None

    def __post_init__(self) -> None:
        rates = self.rates.tolist()
        if len(rates) != self.kernels.n_concepts:
            raise ValueError(
                f"rate has {len(rates)} numbers; pass one, or one for each of {self.kernels.n_concepts} concepts."
            )
        for rate in rates:
            positive("rate", rate)
        low, high = (positive("amplitudes", value) for value in self.amplitudes)
        if low > high:
            raise ValueError(f"amplitudes is ({low:g}, {high:g}); the smaller comes first.")
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation is {self.correlation:g}; it must be in [0, 1].")
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise ValueError(f"snr_db is {self.snr_db}; it must be finite: leave it out for no noise.")
        if self.noise_band is not None:
            at_least("noise_band", self.noise_band, 0)

    @property
    def rates(self) -> Tensor:
        """Rate of each concept, ``(p,)``, float64."""
        if isinstance(self.rate, Sequence):
            return torch.tensor(self.rate, dtype=torch.float64)
        return torch.full((self.kernels.n_concepts,), float(self.rate), dtype=torch.float64)

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in each channel at each point."""
        if self.snr_db is None:
            return 0.0
        low, high = self.amplitudes
        power = float(self.rates.sum()) * (low * low + low * high + high * high) / 3
        return power / self.kernels.channels / 10 ** (self.snr_db / 10)

    def atoms(self, shape: Sequence[int], *, length: float = 1.0) -> Tensor:
        """The kernels on a grid, in the middle as those of :meth:`neuralop_sae.SAE.atoms`, ``(p, channels, *shape)``,
        float64."""
        domain, concept = self.kernels.domain(length), torch.arange(self.kernels.n_concepts)
        grid = domain.check_grid(shape)
        return self.kernels.write(concept, domain.middle(grid).expand(len(concept), -1), grid, domain)

    def sample(self, n_samples: int, shape: Sequence[int], *, length: float = 1.0, seed: int = 0) -> SyntheticData:
        """Fields. Each depends on (seed, its number) only, so that a longer set begins with the shorter one.

        Parameters
        ----------
        n_samples : int
            How many.
        shape : sequence of int
            The grid.
        length : float
            Of a side of the box. A longer box has the events of the shorter one, and more in the part that is new; the noise
            is another.
        seed : int
            Of events and noise.

        Returns
        -------
        SyntheticData

        Raises
        ------
        ValueError
            If a number is not allowed, or the grid is too coarse for noise on the sphere.
        """
        at_least("n_samples", n_samples, 1)
        at_least("seed", seed, 0)
        domain = self.kernels.domain(length)
        grid = domain.check_grid(shape)
        seeds = [sample_seed(seed, number) for number in range(n_samples)]
        drawn = [self._events(each, domain) for each in seeds]
        sample = torch.arange(n_samples).repeat_interleave(torch.tensor([len(concept) for concept, _, _ in drawn]))
        concept, position, amplitude = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        events = Events(sample, concept, position, amplitude)
        signal = torch.zeros(n_samples, self.kernels.channels, *grid, dtype=torch.float64)
        for part in torch.arange(len(events)).split(max(1, _CHUNK_BYTES // (16 * signal[0].numel()))):
            some = events.of(part)
            written = self.kernels.write(some.concept, some.position, grid, domain)
            written *= some.amplitude.view(-1, *(1,) * (written.ndim - 1))
            signal.index_add_(0, some.sample, written)
        x = signal + self._noise(seeds, grid, domain)
        return SyntheticData(x.float(), signal.float(), events, self, domain, length, seed)

    def _events(self, seed: int, domain: Domain) -> tuple[Tensor, Tensor, Tensor]:
        """Concepts, positions and amplitudes of one sample's events."""
        found = []
        common = self.correlation * float(self.rates.min())
        for cell in domain.cells:
            random = _random(seed, 0, *cell)
            together = int(random.poisson(common)) if common else 0
            counts = torch.from_numpy(random.poisson(self.rates.numpy() - common)) + together
            concept = torch.arange(len(counts)).repeat_interleave(counts)
            position = domain.place(cell, torch.from_numpy(random.random((len(concept), domain.n_dim))))
            amplitude = torch.from_numpy(random.uniform(*self.amplitudes, len(concept)))
            inside = domain.inside(position)
            found.append((concept[inside], position[inside], amplitude[inside]))
        concept, position, amplitude = (torch.cat(parts) for parts in zip(*found, strict=True))
        return concept, position, amplitude

    def _noise(self, seeds: Sequence[int], shape: tuple[int, ...], domain: Domain) -> Tensor:
        """The noise of each sample, ``(n, channels, *shape)``."""
        channels, deviation = self.kernels.channels, self.noise_variance**0.5
        if not deviation:
            return torch.zeros(len(seeds), channels, *shape, dtype=torch.float64)

        def draw(*size: int) -> Tensor:
            drawn = [_random(seed, 1).standard_normal((channels, *size)) for seed in seeds]
            return deviation * torch.from_numpy(np.stack(drawn))

        if self.noise_band is None:
            return draw(*shape)
        basis = domain.basis(self.noise_band)
        weights = basis.weights(like=torch.zeros((), dtype=torch.float64))
        coefficients = torch.view_as_complex(draw(*basis.mode_shape, 2))
        # Self-paired coefficients (weight 1) keep their Hermitian part, which has half the power.
        flat = torch.where(weights > 0, coefficients / weights.clamp_min(1).sqrt(), 0) / weights.sum().sqrt()
        return domain.synthesis(basis, flat, shape)


@dataclass(frozen=True)
class SyntheticData:
    """Fields with the truth about them.

    Parameters
    ----------
    x : torch.Tensor
        Shape (n, channels, *grid), float32.
    signal : torch.Tensor
        The same without noise.
    events : Events
        What fired, where and how strongly.
    model : SyntheticConcepts
        What made them.
    domain : Domain
        The box or sphere: grid points and distances.
    length, seed
        As given to :meth:`SyntheticConcepts.sample`.
    """

    x: Tensor
    signal: Tensor
    events: Events
    model: SyntheticConcepts
    domain: Domain
    length: float
    seed: int

    def on(self, shape: Sequence[int]) -> SyntheticData:
        """The same samples on another grid."""
        return self.model.sample(len(self.x), shape, length=self.length, seed=self.seed)

    def codes(self, width: float) -> Tensor:
        """The true codes on the grid, with a bump of this width and of unit integral for each delta:
        ``(n, n_concepts, *grid)``, float32."""
        events, shape = self.events, tuple(self.x.shape[2:])
        codes = torch.zeros(len(self.x) * self.model.kernels.n_concepts, *shape)
        row = events.sample * self.model.kernels.n_concepts + events.concept
        for part in torch.arange(len(events)).split(max(1, _CHUNK_BYTES // (16 * codes[0].numel()))):
            bumps = self.domain.bump(events.position[part], shape, width)
            bumps *= events.amplitude[part].view(-1, *(1,) * len(shape))
            codes.index_add_(0, row[part], bumps.float())
        return codes.reshape(len(self.x), -1, *shape)


def _random(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each stream and cell."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
