"""Principal components: how well a dictionary describes activations that need be neither sparse nor overcomplete."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from ..layers.concept_rules import All
from ..layers.domain_rules import Identity
from .base import SAE, saes
from .baselines import PointSAE
from .mlp import FlatSAE


class _Fitted(SAE):
    """What the two share: components that are fitted, not trained."""

    @torch.no_grad()
    def fit(self, activations: Tensor) -> None:
        """Set mean, scale and components from activations ``(N, channels, *grid)``, all at once, in float64; a view of a store
        or a stream is read whole."""
        activations = activations if isinstance(activations, Tensor) else activations[:]
        self.fit_normalization(torch.zeros_like(self.mean), 1.0)
        field = self.normalize(activations).double()
        weights = self.basis.quadrature(field.shape[2:], like=field)
        mean = (field * weights).flatten(2).sum((0, 2)) / len(field)
        self.fit_normalization(mean, self.basis.mean_square(field - self._per_channel(mean)).mean().sqrt())
        self.initialize_from(activations)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the components from activations ``(N, channels, *grid)``, with the mean and scale as they are."""
        field = self.normalize(x).double()
        self._fit(field, self.basis.quadrature(field.shape[2:], like=field).expand(field.shape[2:]))

    @abstractmethod
    def _fit(self, field: Tensor, weights: Tensor) -> None:
        """Set bias and components from fields in normalised units and the quadrature of their grid, in float64."""


@saes.register("PCA")
class PCA(_Fitted, PointSAE, BaseModel, name="PCA"):  # type: ignore[call-arg]  # mypy misses the base
    r"""Principal components of the channels: the best linear description of points by `n_concepts` maps.

    ``a(s) = U (x(s) - b)`` and ``xhat(s) = U^T a(s) + b`` at every point s, with the leading eigenvectors U of the channels'
    covariance over samples and points. Codes are signed and all are expressed everywhere. Points count by their area.

    It has nothing to train: :meth:`fit` it. Before that components are random ones, orthonormal too.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field, and how many components are kept: at most `in_channels`.
    n_dim : int
        Dimensions of the grid.
    grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Where fields on the sphere are sampled; by default they are on a periodic box.

    Raises
    ------
    ValueError
        If `n_concepts` exceeds `in_channels`, `grid` is unknown, or `n_dim` is not 2 on the sphere.

    Examples
    --------
    >>> pca = PCA(in_channels=4, n_concepts=4)
    >>> x = torch.randn(3, 4, 8, 8)
    >>> pca.fit(x)
    >>> torch.allclose(pca(x).reconstruction, x, atol=1e-5)
    True
    """

    def __init__(self, in_channels: int, n_concepts: int, *, n_dim: int = 2, grid: str | None = None) -> None:
        super().__init__(in_channels, n_concepts, n_dim, grid)
        if n_concepts > in_channels:
            raise ValueError(f"fields of {in_channels} channels have no {n_concepts} components; n_concepts is at most that")
        self.concept_rule, self.domain_rule = All(), Identity()
        self.register_buffer("decoder_weight", nn.init.orthogonal_(torch.empty(n_concepts, in_channels)))
        self.register_buffer("decoder_bias", torch.zeros(in_channels))

    def _pre_codes(self, field: Tensor) -> Tensor:
        return torch.einsum("bi...,ci->bc...", field - self._offset, self.decoder_weight)

    def _fit(self, field: Tensor, weights: Tensor) -> None:
        bias = (field * weights).flatten(2).sum((0, 2)) / len(field)
        centred = field - self._per_channel(bias)
        covariance = torch.einsum("bi...,bj...->ij", centred * weights, centred)
        self.decoder_bias.copy_(bias)
        self.decoder_weight.copy_(torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.n_concepts].T)


@saes.register("FieldPCA")
class FieldPCA(_Fitted, FlatSAE, BaseModel, name="FieldPCA"):  # type: ignore[call-arg]  # mypy misses the base
    """Principal components of whole fields (proper orthogonal decomposition): the best linear description of fields on one
    grid by `n_concepts` numbers.

    ``z = U (x - b)`` and ``xhat = U^T z + b`` on the flattened field, with inner products by quadrature, b the mean field and
    U the leading modes, orthonormal functions. Codes are signed, constant over the domain, and all are on.

    It has nothing to train: :meth:`fit` it. Before that components are random ones, orthonormal too.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field, and how many components are kept: fewer than the fields to fit.
    grid : int or sequence of int
        Sizes of the one grid that fields have.
    sht_grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Where fields on the sphere are sampled; by default they are on a periodic box.

    Raises
    ------
    ValueError
        For arguments that don't fit; when fields come, for any other grid, or too few of them to fit.

    Examples
    --------
    >>> pca = FieldPCA(in_channels=4, n_concepts=2, grid=(8, 8))
    >>> x = torch.randn(3, 4, 8, 8)
    >>> pca.fit(x)
    >>> torch.allclose(pca(x).reconstruction, x, atol=1e-4)  # three fields and their mean span two dimensions
    True
    """

    def __init__(self, in_channels: int, n_concepts: int, grid: int | Sequence[int], *, sht_grid: str | None = None) -> None:
        super().__init__(in_channels, n_concepts, grid, sht_grid, Identity())
        self.concept_rule = All()
        modes = nn.init.orthogonal_(torch.empty(n_concepts, in_channels * math.prod(self.grid)))
        weights = self.basis.quadrature(self.grid, like=modes).expand(self.grid)
        self.register_buffer("decoder_weight", modes.unflatten(1, (in_channels, *self.grid)) / weights.sqrt())
        self.register_buffer("decoder_bias", torch.zeros(in_channels, *self.grid))

    @property
    def encoder_weight(self) -> Tensor:  # type: ignore[override]
        """The same as the decoder's."""
        return self.decoder_weight

    @property
    def encoder_bias(self) -> None:  # type: ignore[override]
        """There is none."""

    def _fit(self, field: Tensor, weights: Tensor) -> None:
        most = min(len(field) - 1, field[0].numel())
        if self.n_concepts > most:
            raise ValueError(
                f"{len(field)} fields of {field[0].numel()} values have at most {most} components, not {self.n_concepts}"
            )
        bias = field.mean(0)
        modes = torch.linalg.svd(((field - bias) * weights.sqrt()).flatten(1), full_matrices=False).Vh[: self.n_concepts]
        self.decoder_bias.copy_(bias)
        self.decoder_weight.copy_(modes.unflatten(1, field.shape[1:]) / weights.sqrt())
