"""SAE-SFNO: concepts as integral operators on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import saes
from .fno import SAEFNO


@saes.register("SAESFNO")
class SAESFNO(SAEFNO, name="SAESFNO"):  # type: ignore[call-arg]  # mypy misses the base
    r"""Sparse autoencoder neural operator on the sphere, for activations of an SFNO.

    As :class:`SAEFNO`, with neuralop's SphericalConv in place of SpectralConv: a concept multiplies the spherical harmonic
    coefficients of its code,

    .. math:: z_c(l, m) = \sum_i E_{ic}(l)\,x_i(l, m), \qquad \hat x_i(l, m) = \sum_c W_{ci}(l)\,a_c(l, m),

    beside the pointwise parts. Every norm, threshold, fraction, loss and metric weighs points by their area.

    Parameters
    ----------
    in_channels, n_concepts
        As in :class:`SAEFNO`.
    n_modes : (int, int)
        ``(L, M)`` as in SFNO: degrees, and twice the number of orders, M at least 2 L.
    grid : {"equiangular", "legendre-gauss", "lobatto"}
        Where fields are sampled. neuralop's SFNO has equiangular grids, which hold L up to (nlat + 1) // 2.
    kernel : {"zonal", "positional"}
        A weight for each degree, so that a concept does the same along every circle of latitude; or for each degree and order.
    isotropic : bool
        Whether zonal weights are real. Then concepts commute with every rotation of the sphere; complex weights treat order 0,
        whose coefficients are real, otherwise than the others, and commute with turns about the axis only. Half the
        parameters.
    **kwargs
        As in :class:`SAEFNO`: rules, encoder, decoder, skip, code_grid, selection, factorization, rank.

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit; when fields come, for grids that are too coarse for L.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAESFNO(in_channels=8, n_concepts=32, n_modes=(8, 16), concept_rule=ns.TopK(4))
    >>> sae(torch.randn(2, 8, 17, 32)).codes.values.shape
    torch.Size([8, 17, 32])
    """

    def __init__(
        self,
        in_channels: int,
        n_concepts: int,
        n_modes: Sequence[int],
        *,
        grid: str = "equiangular",
        kernel: str = "zonal",
        isotropic: bool = False,
        **kwargs: Any,
    ) -> None:
        given = sorted({"conv_module", "conv_options"} & kwargs.keys())
        if given:
            raise TypeError(f"SAESFNO holds its concepts in a SphericalConv and takes no {' or '.join(given)}; SAEFNO does")
        options = {"grid": grid, "kernel": kernel, "isotropic": isotropic}
        super().__init__(in_channels, n_concepts, n_modes, conv_module="SphericalConv", conv_options=options, **kwargs)
        self.grid, self.kernel, self.isotropic = grid, kernel, isotropic

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        return {name: value for name, value in super().config().items() if name not in ("conv_module", "conv_options")}
