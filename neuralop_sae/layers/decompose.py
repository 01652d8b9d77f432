"""Dense weights turned into factorised ones, in place."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorly as tl
import torch
from tensorly.decomposition import parafac, tensor_train
from tensorly.tenalg import mode_dot
from tensorly.tenalg.svd import svd_interface
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor

from .factorized import fill_leading_

# Singular vectors of a matrix by random projection where that many times fewer are wanted than there are.
_RANDOMIZED_BELOW = 4


@torch.no_grad()
def decompose_(target: FactorizedTensor, dense: Tensor, *, n_iterations: int | None = None, seed: int = 0) -> float:
    """Fill a factorised weight with a low-rank approximation of a dense one.

    Tucker: higher-order orthogonal iteration, axes of full rank left as they are. TT: successive truncated singular value
    decompositions. CP: alternating least squares. Parameters stay the same objects, unlike in upstream's ``init_from_tensor``,
    and CP keeps the imaginary part, which upstream's ``from_tensor`` drops.

    Parameters
    ----------
    target : FactorizedTensor
        Tucker, CP or TT weight; its ranks are kept.
    dense : Tensor
        Complex, of the target's shape ``(in, out, *modes)``.
    n_iterations : int, optional
        Sweeps over all axes, 3 for Tucker, at most 100 for CP (fewer once they no longer help).
    seed : int
        For random projections (used for large axes and small ranks) and the start of CP.

    Returns
    -------
    float
        Relative L2 error of the approximation.

    Raises
    ------
    ValueError
        If shapes differ, the dense tensor is not complex, or the form is none of the three.
    """
    name = target.name.lower().removeprefix("complex")
    if name not in _FORMS:
        raise ValueError(f"cannot decompose into factorization {target.name!r}; known: {', '.join(_FORMS)}")
    dtype = next(iter(target.factors)).dtype  # parameters may be pairs of reals
    if tuple(dense.shape) != tuple(target.shape) or dense.is_complex() != dtype.is_complex:
        kind = "complex" if dtype.is_complex else "real"
        raise ValueError(
            f"got a {dense.dtype} tensor of shape {tuple(dense.shape)} for a {kind} weight of shape {tuple(target.shape)}"
        )
    size = float(torch.linalg.vector_norm(dense))
    if not math.isfinite(size):
        raise ValueError("the tensor to decompose has entries that are not finite")
    _FORMS[name](target, dense / (size or 1.0), size, n_iterations, seed)
    return float(torch.linalg.vector_norm(target.to_tensor() - dense)) / (size or 1.0)


def _tucker(target: FactorizedTensor, unit: Tensor, size: float, n_iterations: int | None, seed: int) -> None:
    ranks = tuple(target.core.shape)
    cut = [axis for axis, rank in enumerate(ranks) if rank < unit.shape[axis]]
    factors: dict[int, Tensor] = {}
    # The first sweep truncates one axis after the other, smallest share first; further ones change nothing for a single axis.
    cut.sort(key=lambda axis: ranks[axis] / unit.shape[axis])
    for _ in range((n_iterations or 3) if len(cut) > 1 else 1):
        for axis in cut:
            matrix = tl.unfold(_project(unit, factors, skip=axis), axis)
            factors[axis] = _svd(matrix, ranks[axis], random_state=seed)[0]
    core = _project(unit, factors)
    for axis, factor in enumerate(target.factors):
        eye = torch.eye(unit.shape[axis], dtype=unit.dtype, device=unit.device)
        fill_leading_(factor, factors.get(axis, eye))
    fill_leading_(target.core, core * size)


def _project(tensor: Tensor, factors: dict[int, Tensor], skip: int | None = None) -> Tensor:
    for axis, factor in factors.items():
        if axis != skip:
            tensor = mode_dot(tensor, factor.mH, axis)
    return tensor


def _svd(matrix: Tensor, n_eigenvecs: int, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors and values, as many as there are: (left in columns, values, right in rows)."""
    n = min(n_eigenvecs, *matrix.shape)
    method = "randomized_svd" if n * _RANDOMIZED_BELOW < min(matrix.shape) else "truncated_svd"
    return svd_interface(matrix, method=method, n_eigenvecs=n, **kwargs)  # type: ignore[no-any-return]


def _tt(target: FactorizedTensor, unit: Tensor, size: float, n_iterations: int | None, seed: int) -> None:
    ranks = [core.shape[0] for core in target.factors] + [1]
    cores = list(tensor_train(unit, ranks, svd=_svd, random_state=seed))
    cores[-1] = cores[-1] * size
    for mine, core in zip(target.factors, cores, strict=True):
        fill_leading_(mine, core)


def _cp(target: FactorizedTensor, unit: Tensor, size: float, n_iterations: int | None, seed: int) -> None:
    # In float64 and with a trace of damping: collinear components make the normal equations nearly singular.
    weights, factors = parafac(
        unit.to(torch.complex128 if unit.is_complex() else torch.float64),
        len(target.weights),
        n_iter_max=n_iterations or 100,
        svd=_svd,
        l2_reg=1e-12,
        random_state=seed,
    )
    # One size for all factors of a component, so that no parameter is much more sensitive than another.
    norms = [torch.linalg.vector_norm(factor, dim=0).clamp_min(1e-30) for factor in factors]
    shared = torch.stack(norms).log().mean(0).exp()
    for mine, factor, norm in zip(target.factors, factors, norms, strict=True):
        mine.copy_(factor / norm * shared)
    target.weights.copy_(weights * size)


_FORMS: dict[str, Callable[[FactorizedTensor, Tensor, float, int | None, int], None]] = {
    "tucker": _tucker,
    "cp": _cp,
    "tt": _tt,
}
