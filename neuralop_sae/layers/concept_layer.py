"""What every concept layer is made of: a convolution beside the pointwise skip of an FNO block."""

from __future__ import annotations

from typing import Any

import torch
from neuralop.layers.skip_connections import skip_connection
from torch import Tensor, nn

from .basis import SpectralBasis
from .convolutions import Convolution
from .exchange import ALONE, Exchange


class ConceptLayer(nn.Module):
    """A convolution and a pointwise skip on all concepts; subclasses say how to do without those that are off.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of a field and concepts, or the other way round.
    convolution : Convolution
        What holds the concepts.
    skip : {"linear", None}
        Pointwise part, as an FNO block's skip.
    factorization, rank
        Of the convolution's weight; ranks are explicit.

    Raises
    ------
    ValueError, TypeError
        For an unknown skip, or a convolution without a basis.
    """

    exchange: Exchange = ALONE

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        convolution: Convolution,
        *,
        skip: str | None,
        factorization: str | None,
        rank: Any,
    ) -> None:
        super().__init__()
        if skip not in ("linear", None):
            raise ValueError(f"unknown skip {skip!r}; known: 'linear' (pointwise, as in an FNO block) or None")
        self.convolution = convolution
        self.basis: SpectralBasis = basis_of(convolution)
        self.conv = convolution.make(in_channels, out_channels, factorization=factorization, rank=rank)
        self.skip = skip_connection(in_channels, out_channels, self.basis.n_dim, skip_type=skip) if skip else None

    def dense_forward(self, field: Tensor) -> Tensor:
        """All concepts through the neuralop layers, ``(B, in, *grid)`` -> ``(B, out, *grid)``."""
        out = self.convolution.dense(self.conv, field)
        return out if self.skip is None else out + self.skip(field)

    @torch.no_grad()
    def zero_bias(self) -> None:
        """Set the bias to zero, where the convolution has one under neuralop's name."""
        bias = getattr(self.conv, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()

    def concept_axes(self) -> dict[str, int]:
        """Names of parameters that hold something for each concept, with the axis that counts concepts; empty where concepts
        cannot be divided between processes."""
        return {}


def basis_of(convolution: Convolution) -> SpectralBasis:
    """The basis that a convolution has to set; TypeError if it did not."""
    basis = getattr(convolution, "basis", None)
    if not isinstance(basis, SpectralBasis):
        raise TypeError(
            f"{type(convolution).__name__}.basis is {basis!r}: the constructor of a Convolution has to set self.basis to a "
            "SpectralBasis"
        )
    return basis
