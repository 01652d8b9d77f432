"""neuralop's SphericalConv with weights that concepts need, and transforms that survive inference mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from neuralop.layers.spherical_convolution import SHT, SphericalConv, get_contract_fun
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor

#: Kind of kernel -> on how many of the two axes of the coefficients (degree, order) its weights depend.
KERNELS = {"zonal": 1, "positional": 2}


class ConceptSphericalConv(SphericalConv):
    """SphericalConv, to be neuralop's ``conv_module``: the same layer for the default arguments, but for the storage of its
    weight as complex numbers instead of pairs of reals.

    Upstream's transforms are cached in single precision, also in a double precision layer, and break later backward passes
    when they are made in inference mode; those of this class do neither.

    Parameters
    ----------
    *args, **kwargs
        Of SphericalConv.
    kernel : {"zonal", "positional"}
        Weights for each degree, as in SphericalConv, or for each degree and order.
    isotropic : bool
        Whether weights are real: with zonal weights the layer then commutes with every rotation. Complex ones commute with
        turns about the axis only.
    """

    def __init__(
        self,
        *args: Any,
        kernel: str = "zonal",
        isotropic: bool = False,
        factorization: str | None = None,
        rank: Any = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, factorization=None, rank=1.0, **kwargs)
        if self.separable:
            raise ValueError("separable=True never worked in neuralop's SphericalConv")
        degrees, orders = self.n_modes
        modes = (degrees, min(degrees, orders // 2))[: KERNELS[kernel]]
        self.weight = FactorizedTensor.new(
            (self.in_channels, self.out_channels, *modes),
            rank=rank,
            factorization=factorization or "Dense",
            dtype=torch.float32 if isotropic else torch.cfloat,
        )
        self.weight.normal_(0, (2 / (self.in_channels + self.out_channels)) ** 0.5)
        self.factorization, self.rank = factorization, rank
        contract = get_contract_fun(self.weight, implementation=self.implementation)
        self._contract = _Contraction(contract, kernel, isotropic)
        self.sht_handle = _Transforms()

    @classmethod
    def on(cls, grid: str) -> type[ConceptSphericalConv]:
        """This class with another grid than the equiangular, which neuralop's blocks cannot choose."""

        def init(self: ConceptSphericalConv, *args: Any, **kwargs: Any) -> None:
            cls.__init__(self, *args, **{**kwargs, "sht_grids": grid})

        return type(f"{cls.__name__}_{grid}", (cls,), {"__init__": init})


class _Contraction:
    """Upstream's contraction with weights for each degree and order, or real ones."""

    def __init__(self, contract: Callable[..., Tensor], kernel: str, isotropic: bool) -> None:
        self.contract, self.kernel, self.isotropic = contract, kernel, isotropic

    def __call__(self, x: Tensor, weight: FactorizedTensor, separable: bool = False, dhconv: bool = True) -> Tensor:
        zonal = self.kernel == "zonal"
        x = x[..., : weight.shape[-1]] if not zonal else x
        if not self.isotropic:
            return self.contract(x, weight, separable=separable, dhconv=zonal)
        parts = (self.contract(part, weight, separable=separable, dhconv=zonal) for part in (x.real, x.imag))
        return torch.complex(*parts)


class _Transforms(SHT):
    """Upstream's cache of transforms, one for each dtype and device, filled outside inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: dict[tuple[torch.dtype, torch.device], SHT] = {}

    def sht(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See SHT."""
        return self._transform("sht", x, x.dtype, *args, **kwargs)

    def isht(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See SHT."""
        return self._transform("isht", x, x.dtype.to_real(), *args, **kwargs)

    def _transform(self, name: str, x: Tensor, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
        # Not a submodule: a cast of the layer must not cast tables that were made for another precision.
        key = (dtype, x.device)
        if key not in self._handles:
            self._handles[key] = SHT(dtype)
        transform = getattr(self._handles[key], name)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                transform(torch.zeros(x.shape[-2:], dtype=x.dtype, device=x.device), *args, **kwargs)
        return transform(x, *args, **kwargs)  # type: ignore[no-any-return]
