"""The Fourier basis of a periodic box in any dimension, with transforms of our own.

neuralop 2.0.0's SpectralConv shifts the spectrum of odd grids and pads at the wrong end when it changes resolution; the
transforms here serve odd grids and changes of resolution, and agree with it on even grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .basis import Pairing, SpectralBasis, real_dtype, register_basis, transform_of_nothing


@register_basis("fourier")
class FourierBasis(SpectralBasis):
    r"""Fourier series on a periodic box, in the half-spectrum layout of neuralop's SpectralConv.

    Coefficients are true Fourier coefficients (``norm="forward"``), so they do not depend on the grid:

    .. math:: f_k = \int f(s) e^{-2\pi i k\cdot s}\,ds, \qquad
              (S c)(s) = \mathrm{Re}\sum_k w_k\,c_k\,e^{2\pi i k\cdot s}.

    Every dimension but the last holds the frequencies ``-(n // 2) .. (n - 1) // 2`` in ascending order; the last holds
    ``0 .. n // 2``. The weights are 1 in the first column (frequency 0 of the last dimension), 2 inside, and 1 in the
    Nyquist column of an even grid.

    With an *even* number of modes the frequency ``-n/2`` of a leading dimension has no partner ``+n/2``. Its entry in the
    first column then writes ``Re(c e)``, which is how SpectralConv reads it, and ``analysis(synthesis(c))`` is c/2 there.
    Odd numbers of modes have no such entry.

    Parameters
    ----------
    n_modes : int or sequence of int
        Number of modes per dimension, as in neuralop. May exceed what a grid holds: the surplus is zero there.

    Examples
    --------
    >>> basis = FourierBasis((5, 5))
    >>> field = basis.synthesis(torch.ones(3, *basis.mode_shape, dtype=torch.cfloat), (12, 15))
    >>> torch.allclose(basis.analysis(field), torch.ones(3, 5, 3, dtype=torch.cfloat), atol=1e-5)
    True
    """

    equivariant = True
    wavenumber_label = "wavenumber (cycles per domain)"

    def __init__(self, n_modes: int | Sequence[int]) -> None:
        modes = (n_modes,) if isinstance(n_modes, int) else tuple(int(n) for n in n_modes)
        if not modes or min(modes) < 1:
            raise ValueError(f"n_modes needs one positive number per dimension, got {n_modes!r}")
        self.n_modes = modes
        self.n_dim = len(modes)
        self.mode_shape = (*modes[:-1], modes[-1] // 2 + 1)

    def __repr__(self) -> str:
        return f"FourierBasis(n_modes={self.n_modes})"

    def frequencies(self) -> tuple[range, ...]:
        """Integer frequencies along each dimension of the coefficients."""
        leading = tuple(range(-(n // 2), (n + 1) // 2) for n in self.n_modes[:-1])
        return (*leading, range(self.mode_shape[-1]))

    def _held(self, shape: Sequence[int] | None) -> list[tuple[int, int]]:
        """Per dimension the lowest and highest kept frequency that the grid holds (both inclusive). A leading
        dimension holds -N/2 but not +N/2 on an even grid."""
        held = []
        for axis, kept in enumerate(self.frequencies()):
            low, high = kept[0], kept[-1]
            if shape is not None:
                last = axis == self.n_dim - 1
                low = max(low, -(shape[axis] // 2))
                high = min(high, shape[axis] // 2 if last else (shape[axis] - 1) // 2)
            held.append((low, high))
        return held

    def analysis(self, field: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.analysis`. Transforms one dimension at a time and drops what is not kept at
        once, so that later dimensions transform less."""
        grid = self.check_grid(field.shape[-self.n_dim :])
        held = self._held(grid)
        if not field.numel():  # MKL of some versions refuses to transform nothing
            shape = (*field.shape[: -self.n_dim], *self.mode_shape)
            return transform_of_nothing(field, shape, real_dtype(field).to_complex())
        coefficients = torch.fft.rfft(field, norm="forward").narrow(-1, 0, held[-1][1] + 1)
        for axis in range(self.n_dim - 1):
            dim, (low, high) = axis - self.n_dim, held[axis]
            spectrum = torch.fft.fft(coefficients, dim=dim, norm="forward")
            positive = spectrum.narrow(dim, 0, high + 1)
            coefficients = torch.cat([spectrum.narrow(dim, grid[axis] + low, -low), positive], dim) if low else positive
        return self._pad(coefficients, held)

    def _pad(self, coefficients: Tensor, held: list[tuple[int, int]]) -> Tensor:
        padding: list[int] = []
        for kept, (low, high) in zip(self.frequencies(), held, strict=True):
            padding = [low - kept[0], kept[-1] - high, *padding]
        return torch.nn.functional.pad(coefficients, padding) if any(padding) else coefficients

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """See :meth:`SpectralBasis.synthesis`."""
        grid = self.check_grid(shape)
        self.check_modes(coefficients)
        if not coefficients.numel():
            fields = (*coefficients.shape[: -self.n_dim], *grid)
            return transform_of_nothing(coefficients, fields, real_dtype(coefficients))
        spectrum = coefficients
        for axis, (low, high) in enumerate(self._held(grid)):
            dim, first = axis - self.n_dim, self.frequencies()[axis][0]
            if axis == self.n_dim - 1:
                return torch.fft.irfft(spectrum.narrow(dim, 0, high + 1), n=grid[-1], norm="forward")
            positive = spectrum.narrow(dim, -first, high + 1)
            gap = list(spectrum.shape)
            gap[dim] = grid[axis] - (high - low + 1)
            parts = [positive, spectrum.new_zeros(gap), spectrum.narrow(dim, low - first, -low)]
            spectrum = torch.fft.ifft(torch.cat(parts, dim), dim=dim, norm="forward")
        raise AssertionError("unreachable: n_dim >= 1")

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.weights`."""
        return self.cached("weights", shape, like, self._make_weights)

    def _make_weights(self, shape: Sequence[int] | None, like: Tensor) -> Tensor:
        weights = torch.zeros(self.mode_shape, dtype=real_dtype(like), device=like.device)
        pairs = zip(self.frequencies(), self._held(shape), strict=True)
        inside: tuple[Any, ...] = tuple(slice(low - kept[0], high - kept[0] + 1) for kept, (low, high) in pairs)
        weights[inside] = 2.0
        for column in self._self_paired_columns(shape):
            weights[(*inside[:-1], column)] = 1.0
        return weights

    def _self_paired_columns(self, shape: Sequence[int] | None) -> list[int]:
        """Columns of the last dimension that hold both a frequency and its negative."""
        if shape is None or shape[-1] % 2 or shape[-1] // 2 >= self.mode_shape[-1]:
            return [0]
        return [0, shape[-1] // 2]

    def pairing(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Pairing:
        """See :meth:`SpectralBasis.pairing`: in self-paired columns ``(c(k) + conj c(-k)) / 2``, an absent partner
        counting as zero; elsewhere the identity; zero where the grid does not hold the mode."""
        return self.cached("pairing", shape, like, self._make_pairing)

    def _make_pairing(self, shape: Sequence[int] | None, like: Tensor) -> Pairing:
        held = self._make_weights(shape, like) > 0
        own = held.to(real_dtype(like))
        mirrored = torch.zeros_like(own)
        partner = torch.arange(own.numel(), device=like.device).reshape(own.shape)
        for column in self._self_paired_columns(shape):
            index = partner[..., column]
            present = held[..., column]
            for axis in range(self.n_dim - 1):
                kept = self.frequencies()[axis]
                nyquist = None if shape is None or shape[axis] % 2 else -(shape[axis] // 2)
                mirror = [k if k == nyquist else -k for k in kept]
                place = torch.tensor([k - kept[0] if k in kept else 0 for k in mirror], device=like.device)
                exists = torch.tensor([k in kept for k in mirror], device=like.device)
                index = index.index_select(axis, place)
                present = present.index_select(axis, place) & exists.view(-1, *(1,) * (self.n_dim - 2 - axis))
            own[..., column] /= 2
            mirrored[..., column] = 0.5 * (present & held[..., column])
            partner[..., column] = index
        return Pairing(own.flatten(), mirrored.flatten(), partner.flatten())

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.quadrature`: the same weight at every point."""
        grid = self.check_grid(shape)
        n_points = torch.Size(grid).numel()
        return torch.full((1,) * self.n_dim, 1.0 / n_points, dtype=real_dtype(like), device=like.device)

    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """See :meth:`SpectralBasis.resample`. A frequency k is resolved by N points if 2|k| < N: the Nyquist
        frequency of an even grid, whose sine part is invisible, is dropped. The same grid returns the field itself.
        """
        grid, old = self.check_grid(shape), self.check_grid(field.shape[-self.n_dim :])
        if grid == old:
            return field
        band = self.resolved_by([min(sizes) for sizes in zip(old, grid, strict=True)])
        return band.synthesis(band.analysis(field), grid)

    def smallest_grid(self) -> tuple[int, ...]:
        """See :meth:`SpectralBasis.smallest_grid`."""
        return tuple(2 * (n // 2) + 1 for n in self.n_modes)

    def resolved_by(self, shape: Sequence[int]) -> FourierBasis:
        """See :meth:`SpectralBasis.resolved_by`: frequencies k with 2|k| < N, N points along that dimension."""
        return FourierBasis([2 * ((n - 1) // 2) + 1 for n in self.check_grid(shape)])

    def wavenumbers(self) -> Tensor:
        """Radial wavenumbers, in cycles per domain."""
        axes = [torch.tensor(list(k), dtype=torch.float64) for k in self.frequencies()]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)

    def impulse(self, *, like: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.impulse`; in phase at the origin."""
        return self.cached("impulse", None, like, self._make_impulse)

    def _make_impulse(self, _: Sequence[int] | None, like: Tensor) -> Tensor:
        ones = torch.ones(self.mode_shape, dtype=real_dtype(like).to_complex(), device=like.device)
        return ones / self.energy(ones).sqrt()

    def centred(self, field: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.centred`: the origin moves to the point ``size // 2`` of each axis."""
        dims = tuple(range(-self.n_dim, 0))
        return field.roll(tuple(field.shape[dim] // 2 for dim in dims), dims)

    def shared_points(self, fine: Sequence[int], coarse: Sequence[int]) -> tuple[slice, ...] | None:
        """See :meth:`SpectralBasis.shared_points`: grids nest where their sizes have whole ratios."""
        if any(a % b for a, b in zip(fine, coarse, strict=True)):
            return None
        return tuple(slice(None, None, a // b) for a, b in zip(fine, coarse, strict=True))
