"""SAE-MLP: one scalar code per concept, on the flattened field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.concept_rules import TopK
from ..layers.domain_rules import Rectify
from ..layers.fourier import FourierBasis
from ..layers.selection import Selection
from ..layers.sparsity import DomainRule, build_rule, concept_rules
from .base import full_precision, saes
from .dense import DenseSAE, domain


class FlatSAE(DenseSAE):
    """An SAE of flattened fields on one grid: codes are numbers, held as functions that are constant over the domain.

    Inner products are integrals by quadrature, and weights are functions on the grid: unit atoms have entries of order one
    whatever the grid, points on the sphere count by their area. Codes of other functions, as an edit may make them, are read
    as their means. Subclasses set `encoder_weight`, `decoder_weight` ``(p, m, *grid)`` and `encoder_bias` ``(p,)``.
    """

    grid: tuple[int, ...]
    encoder_weight: Tensor
    encoder_bias: Tensor

    def __init__(
        self, in_channels: int, n_concepts: int, grid: int | Sequence[int], sht_grid: str | None, domain_rule: DomainRule
    ) -> None:
        super().__init__(in_channels, n_concepts)
        sizes = (grid,) if isinstance(grid, int) else grid
        if isinstance(sizes, str) or not sizes or any(int(size) != size or size < 1 for size in sizes):
            raise ValueError(f"grid is the sizes of the one grid that fields have, as in (32, 32), got {grid!r}")
        self.grid, self.sht_grid = tuple(int(size) for size in sizes), sht_grid
        self.n_dim = len(self.grid)
        self._basis = domain(self.n_dim, sht_grid).resolved_by(self.grid)
        self.domain_rule = domain_rule

    def normalize(self, x: Tensor) -> Tensor:
        """See :meth:`SAE.normalize`; ValueError also for a field on another grid."""
        field = super().normalize(x)
        self._check_grid(field.shape[2:], "takes")
        return field

    def _check_grid(self, shape: Sequence[int], what: str) -> None:
        if tuple(shape) != self.grid:
            raise ValueError(
                f"{type(self).__name__} has weights for each point of its own grid {self.grid} and {what} no other, got "
                f"{tuple(shape)}; resample, or train an SAEFNO, which takes any grid"
            )

    @property
    def moves(self) -> bool:
        """See :attr:`SAE.moves`: no."""
        return False

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        raise ValueError(
            f"this {type(self).__name__} cannot change its domain: it has weights for each point of its own grid {self.grid}"
        )

    @property
    def _code_basis(self) -> SpectralBasis:
        return FourierBasis((1,) * self.n_dim)  # of the one point that a constant needs

    def _pre_codes(self, field: Tensor) -> Tensor:
        weighted = (field - self._offset) * self.basis.quadrature(self.grid, like=field)
        numbers = nn.functional.linear(weighted.flatten(1), self.encoder_weight.flatten(1), self.encoder_bias)
        return self._per_code(numbers)

    def _write(self, values: Tensor, concepts: slice = slice(None)) -> Tensor:
        written = values.flatten(1) @ self.decoder_weight[concepts].flatten(1)
        return written.unflatten(1, (self.in_channels, *self.grid))

    @property
    def _offset(self) -> Tensor:
        return self.decoder_bias

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """See :meth:`SAE.decode`; ValueError if `output_shape` is not the model's grid."""
        self._check_grid(output_shape or codes.grid, "writes")
        return super().decode(codes, output_shape)

    def _codes(self, values: Tensor, selection: Selection, grid: Sequence[int]) -> ConceptCodes:
        codes = super()._codes(values, selection, grid)
        return replace(codes, values=codes.values.expand(-1, *grid))

    def _dense(self, codes: ConceptCodes) -> Tensor:
        means = (codes.values * self.basis.quadrature(codes.grid, like=codes.values)).flatten(1).sum(1)
        return replace(codes, values=means.view(-1, *(1,) * self.n_dim)).to_dense()

    @property
    def atom_grid(self) -> tuple[int, ...]:
        """See :attr:`SAE.atom_grid`: the one grid."""
        return self.grid

    def _norms(self, weight: Tensor) -> Tensor:
        return self.basis.mean_square(weight).sum(1).sqrt()

    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """What each concept writes for a code of one, ``(n, channels, *shape)``; ValueError if `shape` is not the model's
        grid."""
        self._check_grid(shape, "has atoms on")
        return self.decoder_weight[self.check_concepts(concepts)].detach().clone()


@saes.register("SAEMLP")
class SAEMLP(FlatSAE, BaseModel, name="SAEMLP"):  # type: ignore[call-arg]  # mypy misses the base
    r"""The SAE of language models applied to whole fields: the field flattened to one vector, scalar codes.

    .. math:: z_c = \mathrm{TopK}_k\,\Bigl(\sum_i \int E_{ci}(s)\,(x_i - b_i)(s)\,ds + e_c\Bigr)_+, \qquad
              \hat x_i(s) = \sum_c z_c W_{ci}(s) + b_i(s).

    It knows nothing of translations and of other grids. A code is a function that is constant over the domain, so that codes
    and metrics mean the same as for other models: a concept that is on is on everywhere. Integrals are by quadrature, so that
    on the sphere points count by their area.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field and size of the dictionary.
    grid : int or sequence of int
        Sizes of the one grid that fields have.
    k : int
        Concepts on per sample: those of the largest code times norm of the atom.
    sht_grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Where fields on the sphere are sampled; by default they are on a periodic box.

    Raises
    ------
    ValueError
        For arguments that don't fit; when fields come, for any other grid.

    Examples
    --------
    >>> sae = SAEMLP(in_channels=4, n_concepts=16, grid=(8, 8), k=2)
    >>> float(sae(torch.randn(3, 4, 8, 8)).codes.l0()) <= 2
    True
    """

    def __init__(
        self, in_channels: int, n_concepts: int, grid: int | Sequence[int], *, k: int = 16, sht_grid: str | None = None
    ) -> None:
        super().__init__(in_channels, n_concepts, grid, sht_grid, Rectify())
        self.k = k
        self.concept_rule = build_rule(TopK(k), concept_rules, n_concepts)
        atoms = torch.randn(n_concepts, in_channels, *self.grid)
        self.decoder_weight = nn.Parameter(self._unit(atoms))
        self.encoder_weight = nn.Parameter(self._unit(atoms))
        self.encoder_bias = nn.Parameter(torch.zeros(n_concepts))
        self.decoder_bias = nn.Parameter(torch.zeros(in_channels, *self.grid))

    def _unit(self, atoms: Tensor) -> Tensor:
        norms = self.basis.mean_square(atoms).sum(1).sqrt().clamp_min(1e-12)
        return atoms / self._per_code(norms)[:, None]

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start the bias from the mean field, and each concept from a random mixture of the centred fields, of L2 norm one;
        encoder = decoder."""
        field = self.normalize(x)
        self.decoder_bias.copy_(field.mean(0))
        mixing = torch.randn(self.n_concepts, len(field), generator=generator, dtype=torch.float64).to(field)
        self.decoder_weight.copy_(self._unit(torch.einsum("cn,n...->c...", mixing, field - self.decoder_bias)))
        self.encoder_weight.copy_(self.decoder_weight)
