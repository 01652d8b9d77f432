"""SAE-CNN: concepts as convolutions with taps on a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from ..layers.domain_rules import DEFAULT_DOMAIN_RULE
from ..layers.sparsity import ConceptRule, DomainRule, build_rule, concept_rules, domain_rules, positive_int
from ..layers.taps import adjoint, convolve, on_grid
from .base import saes
from .dense import DenseSAE, domain
from .starts import around, strong_points


@saes.register("SAECNN")
class SAECNN(DenseSAE, BaseModel, name="SAECNN"):  # type: ignore[call-arg]  # mypy misses the base
    r"""Convolutional sparse autoencoder on a periodic box: concepts are kernels of a few taps.

    .. math::
        a_c(s) = D\,\sigma\Bigl(\sum_i \frac 1 K \sum_t E_{ci}(t)\,x_i(s + t) + b_c\Bigr), \qquad
        \hat x_i(s) = \sum_{c\ \mathrm{on}} \frac 1 K \sum_t W_{ci}(t)\,a_c(s - t) + b_i,

    with offsets t of whole grid steps from ``-(K // 2)`` to ``(K - 1) // 2`` along each axis, K of them in all. Means over the
    taps, not sums, as by a quadrature: weights and codes are then as large as those of :class:`SAEFNO` whatever the size of a
    kernel, and one learning rate suits both. With sums a step of Adam exceeds the weights. Rules are those of
    :class:`SAEFNO`; every concept is worked out at every point, so memory grows with ``n_concepts`` times the grid.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field and size of the dictionary.
    kernel_size : int or sequence of int
        Taps K per dimension; its length is the dimension of the grid, 1 to 3. A kernel wider than the grid wraps around it.
    taps : {"fixed", "physical"}
        What becomes of the kernels on another grid. ``"fixed"``: the same taps, so that concepts shrink with the grid step
        and the model means something else. ``"physical"``: taps are samples of a kernel on `reference_grid`; on another grid
        it is interpolated linearly, and its integral kept where the grids nest. Detail finer than a step of the reference
        grid is not there: a single tap becomes a hat.
    reference_grid : int or sequence of int, optional
        With physical taps, and only then: the grid on which `kernel_size` counts.
    concept_rule : ConceptRule, dict or str
        Which concepts are on in a sample.
    domain_rule : DomainRule, dict or str
        Where on the domain each is expressed.

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit, saying which are allowed.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAECNN(in_channels=8, n_concepts=32, kernel_size=(5, 5), concept_rule=ns.TopK(4))
    >>> sae(torch.randn(2, 8, 24, 24)).codes.values.shape
    torch.Size([8, 24, 24])
    """

    def __init__(
        self,
        in_channels: int,
        n_concepts: int,
        kernel_size: int | Sequence[int],
        *,
        taps: str = "fixed",
        reference_grid: int | Sequence[int] | None = None,
        concept_rule: ConceptRule | Mapping[str, Any] | str = "All",
        domain_rule: DomainRule | Mapping[str, Any] | str = DEFAULT_DOMAIN_RULE,
    ) -> None:
        super().__init__(in_channels, n_concepts)
        self.kernel_size = _sizes(kernel_size, "kernel_size")
        self.n_dim = len(self.kernel_size)
        if self.n_dim > 3:
            raise ValueError(f"convolutions are of 1 to 3 dimensions, kernel_size={kernel_size!r} has {self.n_dim}")
        if taps not in ("fixed", "physical"):
            raise ValueError(f"unknown taps {taps!r}; known: fixed, physical")
        if (taps == "physical") != (reference_grid is not None):
            raise ValueError(
                f"taps='physical' needs a reference_grid, and 'fixed' takes none; got {taps!r}, {reference_grid!r}"
            )
        self.taps, self.reference_grid = taps, None if reference_grid is None else _sizes(reference_grid, "reference_grid")
        self._basis = domain(self.n_dim, None).resolved_by(self.atom_grid)
        self.decoder_weight = nn.Parameter(self._unit(torch.randn(n_concepts, in_channels, *self.kernel_size)))
        self.encoder_weight = nn.Parameter(self.decoder_weight.detach().clone())
        self.encoder_bias = nn.Parameter(torch.zeros(n_concepts))
        self.decoder_bias = nn.Parameter(torch.zeros(in_channels))
        self.concept_rule = build_rule(concept_rule, concept_rules, n_concepts)
        self.domain_rule = build_rule(domain_rule, domain_rules, n_concepts)

    def _unit(self, kernels: Tensor) -> Tensor:
        """Of norm one over all channels, in the mean over the taps."""
        norms = kernels.flatten(1).norm(dim=1).clamp_min(1e-12) / self._n_taps**0.5
        return kernels / norms.view(-1, 1, *(1,) * self.n_dim)

    @property
    def _n_taps(self) -> int:
        return math.prod(self.kernel_size)

    def _on_grid(self, weight: Tensor, grid: Sequence[int]) -> tuple[Tensor, list[int]]:
        return on_grid(weight / self._n_taps, grid, self.reference_grid)

    def _pre_codes(self, field: Tensor) -> Tensor:
        kernels, centre = self._on_grid(self.encoder_weight, field.shape[2:])
        return convolve(field, kernels, centre) + self._per_channel(self.encoder_bias)

    def _write(self, values: Tensor, concepts: slice = slice(None)) -> Tensor:
        kernels, centre = self._on_grid(self.decoder_weight[concepts], values.shape[2:])
        return convolve(values, *adjoint(kernels, centre))

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        config = self.config()
        if self.reference_grid is not None:  # taps that are fixed go by grid steps, and so stay as large
            sizes = [size * c for size, c in zip(self.reference_grid, factors, strict=True)]
            if any(abs(size - round(size)) > 1e-6 or round(size) < 1 for size in sizes):
                raise ValueError(
                    f"a box {factors} times as long has {sizes} steps of the reference grid {self.reference_grid}, which "
                    "have to be whole numbers"
                )
            config["reference_grid"] = [round(size) for size in sizes]
        with torch.random.fork_rng(devices=[]):  # what the constructor draws is overwritten
            new = type(self)(**config)
        new.to(self.mean.device, self.dtype).load_state_dict(self.state_dict())
        return new.train(self.training)

    @property
    def atom_grid(self) -> tuple[int, ...]:
        """See :attr:`SAE.atom_grid`."""
        return self.reference_grid or self.kernel_size

    def _norms(self, weight: Tensor) -> Tensor:
        """Of what each concept writes for a one at a point, over points and channels: the L2 norm of its atom, on the
        reference grid if there is one."""
        return weight.flatten(1).norm(dim=1) / self._n_taps

    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """What each concept writes for an impulse of L2 norm one at the central point, ``(n, channels, *shape)``, in
        normalised units. With physical taps the impulse is one of the reference grid: the atom is the same function on every
        grid."""
        index, grid = self.check_concepts(concepts), self.basis.check_grid(shape)
        kernels, centre = self._on_grid(self.decoder_weight[index], grid)
        padding: list[int] = []
        for size, points in zip(kernels.shape[2:], grid, strict=True):
            padding = [0, points - size, *padding]
        shifts = [points // 2 - middle for points, middle in zip(grid, centre, strict=True)]
        atoms = nn.functional.pad(kernels, padding).roll(shifts, tuple(range(2, kernels.ndim)))
        return atoms * (math.prod(grid) / math.prod(self.reference_grid or grid) ** 0.5)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start each kernel from the patch at a random point of a random sample, drawn in proportion to its norm there;
        encoder = adjoint of the decoder times the one factor that fits the activations best."""
        field = self.normalize(x)
        points = strong_points(field.norm(dim=1), self.n_concepts, generator)
        self.decoder_weight.copy_(self._unit(around(field, points, self.kernel_size)))
        self.encoder_weight.copy_(self.decoder_weight)
        self.encoder_bias.zero_()
        self.decoder_bias.zero_()
        training = self.training
        self.eval()  # a look at the activations, not a step
        written = self._write(self._express(self._pre_codes(field)).values)
        self.train(training)
        self.encoder_weight.mul_((written * field).sum() / written.square().sum().clamp_min(1e-12))


def _sizes(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if not sizes:
        raise ValueError(f"{name} needs one positive number per dimension, got {value!r}")
    return tuple(positive_int(size, name) for size in sizes)
