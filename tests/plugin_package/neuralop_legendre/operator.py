"""A neural operator over Legendre polynomials: its convolution can hold concepts, its sites can be read and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from neuralop.layers.skip_connections import skip_connection
from neuralop.layers.spectral_convolution import get_contract_fun
from tltorch import FactorizedTensor
from torch import Tensor, nn

from neuralop_sae import Convolution, Stage, register_concept_layer, register_sites

from .basis import LegendreBasis


class LegendreConv(nn.Module):
    """Multiplies Legendre coefficients by real weights, degree by degree: ``(B, in, *grid)`` -> ``(B, out, *grid)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        factorization: str | None = None,
        rank: Any = 1.0,
    ) -> None:
        super().__init__()
        self.basis = LegendreBasis(n_modes)
        shape = (in_channels, out_channels, *self.basis.mode_shape)
        self.weight = FactorizedTensor.new(shape, rank=rank, factorization=factorization or "Dense", dtype=torch.float32)
        self.weight.normal_(0, (2 / (in_channels + out_channels)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels, *(1,) * self.basis.n_dim))
        self._contract = get_contract_fun(self.weight, implementation="factorized")

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self._contract(self.basis.analysis(x).real, self.weight, separable=False)
        return self.basis.synthesis(coefficients + 0j, x.shape[2:]) + self.bias


@register_concept_layer(LegendreConv)
class LegendreConcepts(Convolution):
    """Concepts in a LegendreConv. Energies, gathering and atoms follow from the basis and the weight."""

    def __init__(self, n_modes: tuple[int, ...]) -> None:
        self.basis = LegendreBasis(n_modes)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> LegendreConv:
        return LegendreConv(in_channels, out_channels, self.basis.n_modes, factorization=factorization, rank=rank)


class LegendreBlocks(nn.Module):
    """All layers in one module, called once per layer, as neuralop's FNOBlocks."""

    def __init__(self, channels: int, n_modes: Sequence[int], n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.convs = nn.ModuleList(LegendreConv(channels, channels, n_modes) for _ in range(n_layers))
        self.skips = nn.ModuleList(
            skip_connection(channels, channels, len(n_modes), skip_type="linear") for _ in range(n_layers)
        )

    def forward(self, x: Tensor, index: int = 0) -> Tensor:
        return nn.functional.gelu(self.convs[index](x) + self.skips[index](x))


class LegendreNO(nn.Module):
    """Lifting, layers and a projection that has channels last: ``(B, in_channels, *grid)`` -> ``(B, out_channels, *grid)``."""

    def __init__(
        self, n_modes: Sequence[int], in_channels: int, out_channels: int, hidden_channels: int, n_layers: int = 2
    ) -> None:
        super().__init__()
        self.n_dim = len(n_modes)
        self.lifting = skip_connection(in_channels, hidden_channels, self.n_dim, skip_type="linear")
        self.blocks = LegendreBlocks(hidden_channels, n_modes, n_layers)
        self.projection = nn.Linear(hidden_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lifting(x)
        for index in range(self.blocks.n_layers):
            x = self.blocks(x, index)
        return self.projection(x.movedim(1, -1)).movedim(-1, 1)


@register_sites(LegendreBlocks, call_argument=("index", 1), n_calls="n_layers")
def _layer(blocks: LegendreBlocks, call: int) -> Sequence[str]:
    return f"convs.{call}", f"skips.{call}"


@register_sites(LegendreNO)
def _operator(operator: LegendreNO, call: int) -> Sequence[str | Stage]:
    return "lifting", "blocks", Stage("projection", layout="batch ... channels")
