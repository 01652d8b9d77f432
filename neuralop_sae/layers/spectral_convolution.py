"""neuralop's SpectralConv with our transforms: right on odd grids, across resolutions and in float64."""

from __future__ import annotations

from collections.abc import Sequence

from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from .fourier import FourierBasis


class FourierConv(SpectralConv):
    """A drop-in ``conv_module`` for neuralop's FNOBlocks, with the same parameters and, on even grids, the same output.

    SpectralConv 2.0.0 shifts the spectrum when a leading grid size is odd, pads at the wrong end when the resolution
    changes, and computes in single precision whatever its weights are.
    """

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """``(B, in_channels, *grid)`` -> ``(B, out_channels, *(output_shape or grid))``."""
        # SpectralConv keeps the halved size of the last mode.
        basis = FourierBasis((*self.n_modes[:-1], 2 * (self.n_modes[-1] - 1)))
        coefficients = self._contract(basis.analysis(x), self.weight, separable=self.separable)
        out = basis.synthesis(coefficients, output_shape or x.shape[2:])
        return out if self.bias is None else out + self.bias
