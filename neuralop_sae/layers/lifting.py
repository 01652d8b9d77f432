"""A pointwise map of channels: m to h and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lifting(nn.Module):
    """``(L x)(s) = L x(s)`` from m to h channels, and P from h to m. Pointwise, so that it commutes with sampling.

    It starts with orthonormal columns, ``L^T L = I``, and ``P = L^T``.

    Parameters
    ----------
    in_channels, channels : int
        m and h, at least m.
    projection : {"tied", "untied"}
        Whether P is the transpose of L, or learned by itself.

    Attributes
    ----------
    weight : Parameter
        L, ``(h, m)``.

    Raises
    ------
    ValueError
        If there are fewer than m channels, or the projection is unknown.

    Examples
    --------
    >>> lifting = Lifting(3, 5)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> lifting.lift(x).shape, torch.allclose(lifting.project(lifting.lift(x)), x, atol=1e-5)
    (torch.Size([2, 5, 8, 8]), True)
    """

    def __init__(self, in_channels: int, channels: int, *, projection: str = "tied") -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < in_channels:
            raise ValueError(f"fields of {in_channels} channels are lifted to as many or more, got channels={channels!r}")
        if projection not in ("tied", "untied"):
            raise ValueError(f"unknown projection {projection!r}; known: tied (the transpose of the lifting), untied")
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, in_channels)))
        self.own_projection = nn.Parameter(self.weight.detach().T.clone()) if projection == "untied" else None

    @property
    def projection(self) -> Tensor:
        """P, ``(m, h)``."""
        return self.weight.T if self.own_projection is None else self.own_projection

    def lift(self, field: Tensor) -> Tensor:
        """``(B, m, *grid)`` -> ``(B, h, *grid)``."""
        return torch.einsum("bi...,hi->bh...", field, self.weight)

    def project(self, field: Tensor) -> Tensor:
        """``(B, h, *grid)`` -> ``(B, m, *grid)``."""
        return torch.einsum("bh...,ih->bi...", field, self.projection)
