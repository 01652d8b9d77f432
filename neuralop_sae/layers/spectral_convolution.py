"""neuralop's SpectralConv with our transforms: right on odd grids, across resolutions and in float64, over any basis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from .basis import SpectralBasis
from .fourier import FourierBasis


class FourierConv(SpectralConv):
    """SpectralConv for real data in full precision, to be neuralop's ``conv_module``: the same parameters and, on even
    grids, the same output.

    SpectralConv 2.0.0 shifts the spectrum when a leading grid size is odd, pads at the wrong end when the resolution
    changes, and computes in single precision whatever its weights are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.complex_data or self.fno_block_precision != "full":
            raise ValueError(
                f"FourierConv takes real data in full precision, got complex_data={self.complex_data}, "
                f"fno_block_precision={self.fno_block_precision!r}"
            )

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """``(B, in_channels, *grid)`` -> ``(B, out_channels, *(output_shape or grid))``."""
        basis = _basis(self.weight.shape[-self.order :])
        coefficients = basis.analysis(x) * _kept(basis, _basis(self.n_modes), x.device)
        coefficients = self._contract(coefficients, self.weight, separable=self.separable)
        out = basis.synthesis(coefficients, output_shape or self._scaled(x.shape[2:]))
        return out if self.bias is None else out + self.bias

    def _scaled(self, grid: Sequence[int]) -> tuple[int, ...]:
        factors = self.resolution_scaling_factor or [1] * len(grid)
        return tuple(round(size * factor) for size, factor in zip(grid, factors, strict=True))


def _basis(mode_shape: Sequence[int]) -> FourierBasis:
    """The basis of a weight, whose last size counts the columns of the half spectrum."""
    return FourierBasis((*mode_shape[:-1], max(1, 2 * (mode_shape[-1] - 1))))


def _kept(whole: FourierBasis, part: FourierBasis, device: torch.device) -> Tensor:
    """Mask of the modes of a weight that its smaller, adjustable ``n_modes`` keep."""
    mask = torch.ones((), dtype=torch.bool)
    for frequencies, kept in zip(whole.frequencies(), part.frequencies(), strict=True):
        mask = mask[..., None] & torch.tensor([k in kept for k in frequencies])
    return mask.to(device)


class BasisConv(SpectralConv):
    """SpectralConv's weights over another basis, to be neuralop's ``conv_module``: a weight for each coefficient.

    Made by :meth:`over`. `n_modes` is the basis's, whatever is asked for.
    """

    basis: SpectralBasis

    def __init__(self, in_channels: int, out_channels: int, n_modes: Any = None, **kwargs: Any) -> None:
        # SpectralConv's weight has n // 2 + 1 columns.
        *leading, last = self.basis.mode_shape
        super().__init__(in_channels, out_channels, (*leading, max(1, 2 * (last - 1))), **{**kwargs, "max_n_modes": None})

    @classmethod
    def over(cls, basis: SpectralBasis) -> type[BasisConv]:
        """The class of convolutions over a basis."""
        return type(f"{type(basis).__name__}Conv", (cls,), {"basis": basis})

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """``(B, in_channels, *grid)`` -> ``(B, out_channels, *(output_shape or grid))``."""
        coefficients = self._contract(self.basis.analysis(x), self.weight, separable=self.separable)
        out = self.basis.synthesis(coefficients, output_shape or x.shape[2:])
        return out if self.bias is None else out + self.bias

    def transform(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """What neuralop's blocks do to their skips: `x` on the grid `output_shape`."""
        return x if output_shape is None else self.basis.resample(x, output_shape)
