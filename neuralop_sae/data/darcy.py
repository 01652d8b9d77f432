r"""Darcy flow: our own generator, and the reader of neuralop's files.

The problem is :math:`-\nabla\cdot(a\,\nabla u) = f` on the unit square with :math:`u = 0` on its boundary;
the operator to learn maps the coefficient :math:`a` to the solution :math:`u`. Everything is dimensionless.

Grids follow neuralop's positional embedding: N points per side at :math:`x_i = i/N, i = 0..N-1`, first axis
x, second axis y. So the grid of 48 is every second point of that of 96. Solvers also need the node at x = 1.
"""

import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .arguments import at_least, distinct
from .cache import cache_file, cached_tensors

__all__ = ["DarcySplit", "darcy_flow", "darcy_matrix", "gaussian_field", "load_darcy", "solve_darcy"]

ALPHA, TAU, N_MODES = 2.0, 3.0, 128
COEFFICIENT_LOW, COEFFICIENT_HIGH = 3.0, 12.0
CACHE_FORMAT = 1  # raise it whenever the same parameters give other numbers or the layout changes
SOLVER_RTOL = 1e-10  # far below the float32 in which solutions are stored


@dataclass(frozen=True)
class DarcySplit:
    """Coefficients and solutions of the same samples on one grid.

    Parameters
    ----------
    x : torch.Tensor
        Coefficient a, shape (n, 1, N, N), float32.
    y : torch.Tensor
        Solution u, shape (n, 1, N, N), float32.
    """

    x: torch.Tensor
    y: torch.Tensor


def gaussian_field(
    n_samples: int,
    resolution: int,
    *,
    alpha: float = ALPHA,
    tau: float = TAU,
    n_modes: int = N_MODES,
    seed: int = 0,
) -> NDArray[np.float64]:
    r"""Sample :math:`N(0, (-\Delta + \tau^2)^{-\alpha})` on the unit square, homogeneous Neumann conditions.

    The Karhunen-Loeve series in the orthonormal cosines :math:`\phi_0 = 1, \phi_k(x) = \sqrt2 \cos(\pi k x)`,

    .. math:: g(x, y) = \sum_{k, l < n\_modes, (k, l) \neq 0}
        (\pi^2 (k^2 + l^2) + \tau^2)^{-\alpha / 2} \, \xi_{kl} \, \phi_k(x) \, \phi_l(y),

    without the constant mode, as in neuralop's ``data_generation/darcy/GRF.m``. (With it the share of g > 0
    varies from sample to sample by 0.31 instead of 0.06; in neuralop's files it varies by 0.05.)

    Parameters
    ----------
    n_samples : int
        Number of fields. Sample i depends on (seed, i) only.
    resolution : int
        N; the field is returned at the nodes i/N, i = 0..N. Any resolution shows the same field.
    alpha, tau : float
        Decay of the spectrum (above 1: the variance is infinite otherwise) and inverse length scale.
    n_modes : int
        Cosine modes per axis. Another number gives other fields.
    seed : int
        Seed, not negative.

    Returns
    -------
    numpy.ndarray
        Shape (n_samples, resolution + 1, resolution + 1), float64.

    Raises
    ------
    ValueError
        For an argument outside its range.

    References
    ----------
    .. [1] Li et al., Fourier neural operator for parametric partial differential equations, arXiv 2010.08895.

    Examples
    --------
    >>> coarse, fine = gaussian_field(2, 8), gaussian_field(2, 16)
    >>> bool(np.allclose(coarse, fine[:, ::2, ::2]))
    True
    """
    n_samples = at_least("n_samples", n_samples, 1)
    resolution = at_least("resolution", resolution, 1)
    n_modes = at_least("n_modes", n_modes, 2)
    seed = at_least("seed", seed, 0)
    if not alpha > 1 or not tau >= 0:
        raise ValueError(f"got alpha={alpha}, tau={tau}; alpha must exceed 1 (finite variance in 2-D) and tau be >= 0.")
    return np.stack([_one_field(seed, i, resolution, alpha, tau, n_modes) for i in range(n_samples)])


def _one_field(seed: int, sample: int, resolution: int, alpha: float, tau: float, n_modes: int) -> NDArray[np.float64]:
    k = np.arange(n_modes)
    scale = np.zeros((n_modes, n_modes))
    eigenvalues = np.pi**2 * (k[:, None] ** 2 + k**2) + tau**2
    scale.flat[1:] = eigenvalues.flat[1:] ** (-alpha / 2)
    coefficients = scale * np.random.default_rng([seed, sample]).standard_normal(scale.shape)
    coefficients[1:] *= np.sqrt(2.0)
    coefficients[:, 1:] *= np.sqrt(2.0)
    # On the nodes i/N mode k is mode k mod 2N, mirrored at N: folded so, a DCT-I gives the whole series on
    # any grid, also one coarser than the series. (Products with cosine matrices are as fast on idle cores,
    # but threaded BLAS on two busy cores made a sample take 35 ms instead of 10.)
    n = resolution
    alias = n - np.abs(n - k % (2 * n))
    folded = np.zeros((n + 1, n + 1))
    np.add.at(folded, (alias[:, None], alias), coefficients)
    folded[1:-1] /= 2  # scipy's DCT-I counts the inner modes twice
    folded[:, 1:-1] /= 2
    return np.asarray(scipy.fft.dctn(folded, type=1), dtype=np.float64)


def darcy_matrix(coefficient: NDArray[np.floating]) -> scipy.sparse.csr_array:
    r"""Finite-volume matrix A of :math:`-\nabla\cdot(a\,\nabla u)`, with :math:`u = 0` on the boundary.

    Node-centred control volumes of side h = 1/N. Row p balances :math:`\sum_q t_{pq} (u_p - u_q) = h^2 f_p`
    over the four neighbours q; the transmissibility :math:`t_{pq} = 2 a_p a_q / (a_p + a_q)` is the harmonic
    mean, exact for a constant flux across a jump of a at the face.

    Parameters
    ----------
    coefficient : numpy.ndarray
        a > 0 at the nodes i/N, i = 0..N, shape (N + 1, N + 1), N >= 3.

    Returns
    -------
    scipy.sparse.csr_array
        Symmetric positive definite, shape ((N - 1)^2, (N - 1)^2); unknowns are the interior nodes, row-major.

    Raises
    ------
    ValueError
        If the coefficient is not square, too small, not finite or not positive.
    """
    a = np.asarray(coefficient, dtype=np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] < 4:
        raise ValueError(f"coefficient has shape {a.shape}; pass (N + 1, N + 1) nodes, both ends included, N >= 3.")
    if not (np.isfinite(a).all() and (a > 0).all()):
        raise ValueError(f"coefficient must be finite and positive; it runs from {a.min()} to {a.max()}.")
    m = a.shape[0] - 2
    rows, columns = a[:, 1:-1], a[1:-1, :]
    tx = 2 * rows[1:] * rows[:-1] / (rows[1:] + rows[:-1])
    ty = 2 * columns[:, 1:] * columns[:, :-1] / (columns[:, 1:] + columns[:, :-1])
    diagonal = tx[1:] + tx[:-1] + ty[:, 1:] + ty[:, :-1]
    along_x = -tx[1:-1].ravel()
    along_y = -ty[:, 1:]
    along_y[:, -1] = 0.0  # the last node of a row is no neighbour of the first of the next
    y_band = along_y.ravel()[:-1]
    return scipy.sparse.diags_array(
        [along_x, y_band, diagonal.ravel(), y_band, along_x], offsets=[-m, -1, 0, 1, m], format="csr"
    )


def solve_darcy(coefficient: NDArray[np.floating], forcing: float | NDArray[np.floating] = 1.0) -> NDArray[np.float64]:
    r"""Solve :math:`-\nabla\cdot(a\,\nabla u) = f`, :math:`u = 0` on the boundary, by finite volumes.

    Parameters
    ----------
    coefficient : numpy.ndarray
        a > 0 at the nodes i/N, i = 0..N, shape (N + 1, N + 1), N >= 3; see `darcy_matrix`.
    forcing : float or numpy.ndarray, optional
        f, one number or values at the nodes, shape (N + 1, N + 1).

    Returns
    -------
    numpy.ndarray
        u at the nodes, shape (N + 1, N + 1), float64; exactly 0 on the boundary.

    Raises
    ------
    ValueError
        If a shape or a value is not allowed.
    RuntimeError
        If the linear solver does not converge.

    Examples
    --------
    >>> round(float(solve_darcy(np.ones((97, 97)))[48, 48]), 4)
    0.0737
    """
    matrix = darcy_matrix(coefficient)
    n = len(coefficient) - 1
    f = np.asarray(forcing, dtype=np.float64)
    if f.shape not in ((), (n + 1, n + 1)) or not np.isfinite(f).all():
        raise ValueError(f"forcing has shape {f.shape}; pass a finite number or finite values of shape {(n + 1, n + 1)}.")
    right_side = np.broadcast_to(f, (n + 1, n + 1))[1:-1, 1:-1].ravel() / n**2
    # Preconditioned with the constant-coefficient Laplacian, inverted by sine transforms: the condition
    # number is then at most the contrast of a, on any grid. At contrast 4: 23 iterations, 5 ms (N = 96) and
    # 28 ms (N = 192) a sample; the best sparse LU (MMD_AT_PLUS_A, SymmetricMode) takes 15 ms and 101 ms.
    wave = 2 - 2 * np.cos(np.pi * np.arange(1, n) / n)
    eigenvalues = wave[:, None] + wave

    def invert_laplacian(residual: NDArray[np.float64]) -> NDArray[np.float64]:
        spectrum = scipy.fft.dstn(residual.reshape(n - 1, n - 1), type=1) / eigenvalues
        return np.asarray(scipy.fft.idstn(spectrum, type=1)).ravel()

    preconditioner = scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=invert_laplacian, dtype=np.float64)
    interior, failed = scipy.sparse.linalg.cg(matrix, right_side, rtol=SOLVER_RTOL, M=preconditioner)
    if failed:
        contrast = np.max(coefficient) / np.min(coefficient)
        raise RuntimeError(f"no convergence in {failed} iterations at contrast {contrast:.3g}; lower the contrast.")
    return np.pad(interior.reshape(n - 1, n - 1), 1)


def darcy_flow(
    n_samples: int,
    resolutions: Sequence[int] = (48, 96),
    *,
    seed: int = 0,
    solver_resolution: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[int, DarcySplit]:
    r"""Generate Darcy flow samples; the same samples at every resolution.

    The coefficient is 12 where `gaussian_field` (alpha = 2, tau = 3) is positive and 3 elsewhere, the forcing
    is 1 [1]_. Each sample is solved once, then coefficient and solution are sub-sampled: grids nest exactly.

    Parameters
    ----------
    n_samples : int
        Number of samples. Sample i depends on (seed, i) only, so a longer set begins with the shorter one.
    resolutions : sequence of int, optional
        Points per side N of the grids wanted; x_i = i/N, i = 0..N-1.
    seed : int, optional
        Seed, not negative.
    solver_resolution : int, optional
        Grid to solve on, a multiple of every resolution, at least 3. Default: the finest of `resolutions`.
        Solutions, unlike coefficients, depend on it (first order, because a jumps: 0.4 % at 96).
    cache_dir : path-like, optional
        Folder for a safetensors file with the result, created if missing. The name holds every parameter;
        a damaged file is made anew with a warning.
    progress : bool, optional
        Show a progress bar.

    Returns
    -------
    dict of int to DarcySplit
        From resolution, ascending, to x and y of shape (n_samples, 1, N, N), float32.

    Raises
    ------
    ValueError
        If an argument is out of range or a resolution does not divide the solver's.

    References
    ----------
    .. [1] Li et al., Fourier neural operator for parametric partial differential equations, arXiv 2010.08895.

    Examples
    --------
    >>> splits = darcy_flow(2, (8, 16), progress=False)
    >>> splits[8].y.shape, bool((splits[8].y == splits[16].y[..., ::2, ::2]).all())
    (torch.Size([2, 1, 8, 8]), True)
    """
    n_samples = at_least("n_samples", n_samples, 1)
    seed = at_least("seed", seed, 0)
    grids, solver = _nested_grids(resolutions, solver_resolution)
    path = cache_file(
        cache_dir,
        f"darcy_v{CACHE_FORMAT}_n{n_samples}_r{'-'.join(map(str, grids))}_solver{solver}_seed{seed}"
        f"_alpha{ALPHA:g}_tau{TAU:g}_modes{N_MODES}_a{COEFFICIENT_LOW:g}-{COEFFICIENT_HIGH:g}_rtol{SOLVER_RTOL:g}",
    )
    shapes = {f"{name}_{n}": (n_samples, 1, n, n) for n in grids for name in "xy"}
    tensors = cached_tensors(path, shapes, lambda: _sample(n_samples, seed, grids, solver, progress))
    return {n: DarcySplit(tensors[f"x_{n}"], tensors[f"y_{n}"]) for n in grids}


def _sample(n_samples: int, seed: int, grids: list[int], solver: int, progress: bool) -> dict[str, torch.Tensor]:
    tensors = {f"{name}_{n}": torch.empty(n_samples, 1, n, n) for n in grids for name in "xy"}
    for i in tqdm(range(n_samples), desc=f"Darcy flow {solver}x{solver}", unit="sample", disable=not progress):
        field = _one_field(seed, i, solver, ALPHA, TAU, N_MODES)
        a = np.where(field > 0, COEFFICIENT_HIGH, COEFFICIENT_LOW)
        u = solve_darcy(a)
        for n in grids:
            step = solver // n
            tensors[f"x_{n}"][i, 0] = torch.from_numpy(a[:-1:step, :-1:step])
            tensors[f"y_{n}"][i, 0] = torch.from_numpy(u[:-1:step, :-1:step])
    return tensors


def _nested_grids(resolutions: Sequence[int], solver_resolution: int | None) -> tuple[list[int], int]:
    grids = distinct("resolutions", (at_least("each resolution", n, 1) for n in resolutions), "(48, 96)")
    solver = at_least("solver_resolution", grids[-1] if solver_resolution is None else solver_resolution, 3)
    wrong = [n for n in grids if solver % n]
    if wrong:
        allowed = [n for n in range(1, solver + 1) if solver % n == 0]
        raise ValueError(
            f"resolutions {wrong} do not divide the solver resolution {solver}, which allows {allowed}; "
            f"choose among these, or pass solver_resolution={np.lcm.reduce(grids)} or a multiple of it."
        )
    return grids, solver


def load_darcy(data_root: str | os.PathLike[str], *, n_train: int | None = None) -> tuple[DarcySplit, dict[int, DarcySplit]]:
    """Read neuralop's Darcy files ``darcy_train_*.pt`` and ``darcy_test_*.pt`` as they are.

    Upstream does not say what its ``darcy_train_16``, ``darcy_test_16`` and ``darcy_test_32`` hold. Measured:

    - The test files hold the same 50 samples: test_16 equals ``test_32[:, ::2, ::2]`` bit for bit, x and y.
    - Points are at x_i = i/N + 1/1024: extrapolated, the solutions of test_32 vanish 0.031 = 1/32 of a step
      before the first point and 0.97 after the last. Close to i/N, but the first row is not exactly 0.
    - x is a mask, not {3, 12}: -Laplace(u) is 50 where x is False and 2.78 where it is True, that is a = 0.02
      and a = 0.36 at forcing 1, a contrast of 18. `solve_darcy` with these values, on a coefficient known at
      32 x 32 points only, reproduces y to 2.3 % and its scale to 0.1 %.

    So our `darcy_flow` (contrast 4) is the problem of the paper, not that of these files.

    Parameters
    ----------
    data_root : path-like
        Folder of the files.
    n_train : int, optional
        Keep the first n_train training samples. Default: all.

    Returns
    -------
    train : DarcySplit
        The smallest training resolution present; x in {0, 1} and y of shape (n, 1, N, N), float32.
    tests : dict of int to DarcySplit
        From resolution, ascending, to the test samples.

    Raises
    ------
    FileNotFoundError
        If the folder or one of the two kinds of file is missing.
    ValueError
        If n_train is not between 1 and the number of samples, or a file is not what its name says.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; pass the one that holds darcy_train_*.pt and darcy_test_*.pt.")
    files = {kind: _numbered_files(root, kind) for kind in ("train", "test")}
    train = _read_split(*min(files["train"].items()))
    if n_train is not None:
        if not 1 <= operator.index(n_train) <= len(train.x):
            raise ValueError(f"n_train is {n_train}; the file holds {len(train.x)} samples, pass 1 to {len(train.x)}.")
        train = DarcySplit(train.x[:n_train], train.y[:n_train])
    return train, {n: _read_split(n, path) for n, path in sorted(files["test"].items())}


def _numbered_files(root: Path, kind: str) -> dict[int, Path]:
    matches = [(re.fullmatch(rf"darcy_{kind}_(\d+)\.pt", path.name), path) for path in root.iterdir()]
    files = {int(match[1]): path for match, path in matches if match}
    if not files:
        present = sorted(path.name for path in root.iterdir()) or "nothing"
        raise FileNotFoundError(f"no darcy_{kind}_<resolution>.pt in {root}, which holds {present}.")
    return files


def _read_split(resolution: int, path: Path) -> DarcySplit:
    data = torch.load(path, weights_only=True, map_location="cpu")
    shapes = {key: tuple(data[key].shape) for key in ("x", "y") if key in data}
    if shapes.keys() != {"x", "y"} or any(s != (s[0], resolution, resolution) for s in shapes.values()):
        raise ValueError(f"{path} holds {shapes}; its name promises x and y of shape (n, {resolution}, {resolution}).")
    return DarcySplit(*(data[key].to(torch.float32).unsqueeze(1) for key in ("x", "y")))
