"""Baselines: sparse autoencoders that applied work uses on fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.fourier import FourierBasis
from ..layers.selection import Selection
from ..layers.spherical import SphericalBasis
from .base import SAE, SAEOutput, full_precision, saes
from .spectral import directions, random_points


@saes.register("SAEPointwise")
class SAEPointwise(SAE, BaseModel, name="SAEPointwise"):  # type: ignore[call-arg]  # mypy misses the base
    """The SAE of language models applied to every point of a field: one dictionary of channel vectors, the k strongest
    at each point.

    ``a(s) = TopK_k(relu(E (x(s) - b) + c))`` and ``xhat(s) = W a(s) + b`` at every point s by itself. Points count alike on
    a periodic box, and by their area on the sphere: in the loss, in norms and in every metric.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field and size of the dictionary.
    k : int
        Concepts expressed per point.
    n_dim : int
        Dimensions of the grid.
    grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Where fields on the sphere are sampled, as in :class:`SAESFNO`; by default they are on a periodic box.

    Raises
    ------
    ValueError
        If `k` is out of range, `grid` is unknown, or `n_dim` is not 2 on the sphere.

    Examples
    --------
    >>> sae = SAEPointwise(in_channels=4, n_concepts=16, k=2)
    >>> float(sae(torch.randn(3, 4, 8, 8)).codes.l0_local()) <= 2
    True
    >>> SAEPointwise(in_channels=4, n_concepts=16, grid="equiangular").basis
    SphericalBasis(n_modes=(1, 2), grid='equiangular')
    """

    def __init__(self, in_channels: int, n_concepts: int, *, k: int = 4, n_dim: int = 2, grid: str | None = None) -> None:
        super().__init__(in_channels, n_concepts)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_concepts:
            raise ValueError(f"k must be a whole number from 1 to n_concepts={n_concepts}, got {k!r}")
        if grid is not None and n_dim != 2:
            raise ValueError(f"grid={grid!r} is on the sphere, which has n_dim=2, got {n_dim}; on a box leave grid out")
        self.k, self.n_dim, self.grid = k, n_dim, grid
        # Quadrature and resampling do not depend on the modes of these bases.
        self._basis: SpectralBasis = FourierBasis((1,) * n_dim) if grid is None else SphericalBasis((1, 2), grid)
        directions = nn.functional.normalize(torch.randn(n_concepts, in_channels), dim=1)
        self.decoder_weight = nn.Parameter(directions)
        self.encoder_weight = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(n_concepts))
        self.decoder_bias = nn.Parameter(torch.zeros(in_channels))

    @property
    def basis(self) -> SpectralBasis:
        """Of the periodic box or the sphere, for quadrature and resampling."""
        return self._basis

    @full_precision
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16) -> SAEOutput:
        """See :meth:`SAE.forward`; of the dead, the strongest at each point."""
        pre_codes = self._pre_codes(x)
        values = self._sparse(pre_codes)
        revived = None if dead is None else self._revive(pre_codes, dead, dead_k)
        return SAEOutput(self._write(values), self._codes(values), self._scores(values), dead_reconstruction=revived)

    def dense_forward(self, x: Tensor) -> SAEOutput:
        """The same as :meth:`forward`, which is dense already."""
        return self.forward(x)

    @full_precision
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""
        return self._codes(self._sparse(self._pre_codes(x)))

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for."""
        return self.basis.resample(self._write(codes.to_dense()), output_shape or codes.grid)

    def _pre_codes(self, x: Tensor) -> Tensor:
        centred = self.normalize(x) - self._per_channel(self.decoder_bias)
        return torch.einsum("bi...,ci->bc...", centred, self.encoder_weight) + self._per_channel(self.encoder_bias)

    def _sparse(self, pre_codes: Tensor) -> Tensor:
        values, index = torch.relu(pre_codes).topk(self.k, dim=1)
        return torch.zeros_like(pre_codes).scatter(1, index, values)

    def _write(self, values: Tensor) -> Tensor:
        written = torch.einsum("bc...,ci->bi...", values, self.decoder_weight) + self._per_channel(self.decoder_bias)
        return self.denormalize(written)

    def _codes(self, values: Tensor) -> ConceptCodes:
        rows = Selection.from_mask(values.detach().flatten(2).any(2))
        kept = values[rows.sample, rows.concept]
        return ConceptCodes(rows.sample, rows.concept, kept, rows.n_samples, rows.n_concepts, self.basis)

    def _scores(self, values: Tensor) -> Tensor:
        return self.basis.mean_square(values.detach()).sqrt() * self.kernel_norms()

    @torch.no_grad()
    def kernel_norms(self) -> Tensor:
        """Norm of each concept's channel vector, ``(n_concepts,)``."""
        return self.decoder_weight.norm(dim=1)

    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """The channel vector at the central point, zero elsewhere, ``(n, channels, *shape)``, of L2 norm
        :meth:`kernel_norms`."""
        index, grid = self.check_concepts(concepts), self.basis.check_grid(shape)
        atoms = self.decoder_weight.new_zeros(len(index), self.in_channels, *grid)
        centre: tuple[Any, ...] = (..., *(size // 2 for size in grid))
        share = self.basis.quadrature(grid, like=atoms).expand(grid)[centre]
        atoms[centre] = self.decoder_weight[index] / share.sqrt()
        return atoms

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start each concept from the activation at a random point, drawn in proportion to its norm; encoder = decoder."""
        points = random_points(self.normalize(x), generator)
        self.decoder_weight.copy_(directions(points, self.n_concepts, generator))
        self.encoder_weight.copy_(self.decoder_weight)

    def _revive(self, pre_codes: Tensor, dead: Tensor, k: int) -> Tensor:
        masked = torch.where(self._per_channel(dead), nn.functional.leaky_relu(pre_codes, 0.01), -torch.inf)
        values, index = masked.topk(min(k, self.n_concepts), dim=1)
        kept = torch.zeros_like(pre_codes).scatter(1, index, torch.where(values.isfinite(), values, 0.0))
        return torch.einsum("bc...,ci->bi...", kept, self.decoder_weight) * self.scale
