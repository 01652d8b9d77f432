"""What training minimises: plain functions on fields and codes."""

from __future__ import annotations

from torch import Tensor

from ..layers.basis import SpectralBasis


def unexplained_variance(x: Tensor, reconstruction: Tensor, scale: Tensor, basis: SpectralBasis) -> Tensor:
    r"""Mean square of the error in units of the activations' variance, :math:`\|x - \hat x\|^2 / (m\,s^2)`, pooled over the
    batch; one minus it is the batch's share of the FVE.

    Parameters
    ----------
    x, reconstruction : Tensor
        Fields ``(B, m, *grid)``.
    scale : Tensor
        s, root mean square of the centred activations, ``()``.
    basis : SpectralBasis
        Gives the quadrature.
    """
    return basis.mean_square(x - reconstruction).mean() / scale.square()


def auxiliary_loss(residual: Tensor, written: Tensor, basis: SpectralBasis) -> Tensor:
    """Share of the residual that dead concepts leave unexplained, ``()`` (Gao et al., arXiv 2406.04093). The residual is
    detached: dead concepts learn what the living miss, the living learn nothing from it.

    Parameters
    ----------
    residual : Tensor
        Error of the reconstruction, ``(B, m, *grid)``.
    written : Tensor
        What the dead concepts write for the same input.
    basis : SpectralBasis
        Gives the quadrature.
    """
    residual = residual.detach()
    return basis.mean_square(residual - written).mean() / basis.mean_square(residual).mean().clamp_min(1e-20)
