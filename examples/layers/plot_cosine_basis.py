"""
A cosine basis for a domain with walls
======================================

A Fourier dictionary lives on a periodic box: what happens at one wall goes on at the opposite one. Darcy flow has walls. Here
cosines become a basis of the package, and take the place of the Fourier modes in an otherwise equal dictionary.

You will learn to write and check a basis, and what this one changes. Near the walls a cosine series misses the permeability
and an FNO's activations by less. A dictionary gains there too, if it has no pointwise skip. Where nothing is gained is shown
as well, and why.
"""

# %%
# The basis
# ---------
# Darcy data are given at the nodes :math:`x_i = i/N,\ i = 0, \dots, N-1`: the first lies on a wall, the one on the opposite
# wall is missing. On [0, 1] the functions :math:`\phi_0 = 1,\ \phi_k = \sqrt2 \cos(\pi k x)` are orthonormal. For K of them
# to be so on the grid as well, its quadrature has to integrate their products, cosines up to the degree d = 2(K - 1).
#
# With both walls the trapezoidal rule does. Here the value on the missing wall is replaced by its least-squares extrapolation
# from the other nodes, exact for cosines up to degree d. The extrapolated value is a sum over the reproducing kernel of the
# wall, :math:`D(x) = 1 + 2 \sum_{j=1}^{d} \cos(\pi j (1 - x))`, so the weights are
#
# .. math:: w_i = t_i \left(1 + \frac{D(x_i)}{2N - 2d - 1}\right), \qquad t_0 = \frac{1}{2N},\quad t_i = \frac1N .
#
# It needs d < N, so a grid of N points holds the modes k < N / 2. A basis consists of four methods: analysis, synthesis,
# the weights of Parseval's identity, and the quadrature.

import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from tltorch import FactorizedTensor
from torch import Tensor, nn
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.data.darcy import darcy_flow
from neuralop_sae.layers import bases
from neuralop_sae.testing import check_basis, check_model


@ns.register_basis("cosine")
class CosineBasis(ns.SpectralBasis):
    """Products of cosines on a box with walls, on the nodes i/N, i = 0..N-1.

    Parameters
    ----------
    n_modes : sequence of int
        Cosines per dimension.
    """

    def __init__(self, n_modes: Sequence[int]) -> None:
        self.n_modes = self.mode_shape = tuple(n_modes)
        self.n_dim = len(self.n_modes)

    def analysis(self, field: Tensor) -> Tensor:
        for axis in range(self.n_dim):
            size = field.shape[axis - self.n_dim]
            matrix = self._cosines(axis, size) * self._rule(axis, size)
            field = _along(axis - self.n_dim, field, matrix)
        return torch.complex(field, torch.zeros_like(field))

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        field = coefficients.real
        for axis, size in enumerate(shape):
            field = _along(axis - self.n_dim, field, self._cosines(axis, size).T)
        return field

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        weights = torch.zeros(self.mode_shape)
        held = self.n_modes if shape is None else map(self._n_held, range(self.n_dim), shape)
        weights[tuple(slice(n) for n in held)] = 1.0
        return weights.to(like)

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        weights = torch.ones((), dtype=torch.float64)
        for axis, size in enumerate(shape):
            weights = weights[..., None] * self._rule(axis, size)
        return weights.to(like)

    def _n_held(self, axis: int, size: int) -> int:
        return min(self.n_modes[axis], (size + 1) // 2)

    def _cosines(self, axis: int, size: int) -> Tensor:
        """Values of the cosines on a grid, ``(n_modes, size)``; zero for those that it does not hold."""
        k = torch.arange(self.n_modes[axis], dtype=torch.float64)[:, None]
        waves = torch.cos(torch.pi * k * _nodes(size)) * (2 - (k == 0).double()).sqrt()
        return waves * (k < self._n_held(axis, size))

    def _rule(self, axis: int, size: int) -> Tensor:
        """Quadrature weights along an axis, ``(size,)``."""
        degree = 2 * (self._n_held(axis, size) - 1)
        j = torch.arange(1, degree + 1, dtype=torch.float64)[:, None]
        kernel = 1 + 2 * torch.cos(torch.pi * j * (1 - _nodes(size))).sum(0)
        trapezoid = torch.full((size,), 1 / size, dtype=torch.float64)
        trapezoid[0] /= 2
        return trapezoid * (1 + kernel / (2 * size - 2 * degree - 1))


def _nodes(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) / size


def _along(dim: int, field: Tensor, matrix: Tensor) -> Tensor:
    return torch.tensordot(field, matrix.to(field), ([dim], [1])).movedim(-1, dim)


# %%
# The contract of a basis holds it to what the package builds on: adjointness of analysis and synthesis, Parseval, and
# coefficients that do not depend on the grid, also on grids that do not hold every mode. The name of the basis is a
# ``conv_module`` from now on.

check_basis(CosineBasis((5, 4)))
check_basis(CosineBasis((4, 3)), shapes=[(9, 7), (12, 8), (5, 6), (3, 2)])
check_model(ns.SAEFNO(3, 8, (4, 4), conv_module="cosine", concept_rule=ns.TopK(3)), torch.randn(2, 3, 9, 10))

# %%
# Under that name the weights are neuralop's complex ones, and over a real basis their imaginary parts act on nothing. A layer
# with a real weight for each coefficient, of any basis, does without them (``plot_concept_layer.py`` explains such layers).


class RealConv(nn.Module):
    """A real weight for each coefficient of a basis."""

    def __init__(self, in_channels: int, out_channels: int, basis: ns.SpectralBasis, factorization: str, rank: Any) -> None:
        super().__init__()
        self.basis = basis
        self.weight = FactorizedTensor.new(
            (in_channels, out_channels, *basis.mode_shape), rank, factorization, dtype=torch.float32
        )
        self.weight.normal_(0, (2 / (in_channels + out_channels)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels, *(1,) * basis.n_dim))

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self.basis.analysis(x)
        weight = self.weight.to_tensor().to(coefficients.dtype)
        written = torch.einsum("bi...,io...->bo...", coefficients, weight)
        return self.basis.synthesis(written, x.shape[2:]) + self.bias


@ns.register_concept_layer(RealConv)
class RealConcepts(ns.Convolution):
    """Concepts with a real weight for each coefficient of the basis of that name."""

    def __init__(self, n_modes: tuple[int, ...], basis: str) -> None:
        self.basis = bases.get(basis)(n_modes)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> RealConv:
        return RealConv(in_channels, out_channels, self.basis, factorization or "dense", rank)


for name in ("fourier", "cosine"):
    layer = {"conv_module": RealConv, "conv_options": {"basis": name}}
    check_model(ns.SAEFNO(3, 8, (5, 5), concept_rule=ns.TopK(3), **layer), torch.randn(2, 3, 11, 12))

# %%
# An operator and its activations
# -------------------------------
# A small FNO on Darcy flow, as in ``plot_first_sae.py``. Its own convolutions are periodic.

torch.manual_seed(0)
data = darcy_flow(240, (32, 64), cache_dir="data", progress=False)[32]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 200), slice(200, 240)))

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = FNO(n_modes=(12, 12), in_channels=1, out_channels=1, hidden_channels=16, projection_channel_ratio=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
loader = DataLoader(TensorDataset(**train), batch_size=10, shuffle=True)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
Trainer(model=model, n_epochs=8, data_processor=processor).train(loader, {}, optimizer, scheduler, training_loss=LpLoss(d=2))

SITE = "fno_blocks.1"
activations, held_out = (ns.capture(model, SITE, part, data_processor=processor) for part in (train, test))

# %%
# What the modes alone can say
# ----------------------------
# Three fields are cut off after 9 x 9 modes: 81 real numbers per channel in either basis, and four oscillations per side at
# most. Errors are mean squares over the grid's points in units of the field's variance, by distance from the nearest wall.

side = torch.minimum(torch.arange(32), 32 - torch.arange(32))
DISTANCE = torch.minimum(side[:, None], side)
NEAR = DISTANCE < 2
COLORS = {"Fourier": "#0072B2", "Fourier, even": "#9aa0a6", "cosine": "#D55E00"}


def error_map(field: Tensor, approximation: Tensor) -> Tensor:
    """Mean square error over samples and channels at every point, over the variance of the field."""
    variance = (field - field.mean((0, 2, 3), keepdim=True)).square().mean()
    return (field - approximation).square().mean((0, 1)) / variance


def by_distance(error: Tensor) -> list[float]:
    """Mean of an error map at every distance from the walls."""
    return [float(error[d == DISTANCE].mean()) for d in range(17)]


fields = {"permeability a": test["x"], f"activations of {SITE}": held_out, "pressure u": test["y"]}
series = {"Fourier": ns.FourierBasis((9, 9)), "cosine": CosineBasis((9, 9))}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
print(f"{'truncated to 9 x 9 modes':<28}{'basis':<10}{'near walls':>12}{'inside':>10}")
for axis, (name, field) in zip(axes, fields.items(), strict=True):
    for basis_name, basis in series.items():
        error = error_map(field, basis.synthesis(basis.analysis(field), field.shape[2:]))
        axis.semilogy(by_distance(error), label=basis_name, color=COLORS[basis_name])
        print(f"{name:<28}{basis_name:<10}{error[NEAR].mean():>12.4f}{error[~NEAR].mean():>10.4f}")
    axis.set(title=name, xlabel="grid steps from the nearest wall")
axes[0].set_ylabel("squared error / variance")
axes[0].legend(fontsize=8, frameon=False)
figure.suptitle("What 9 x 9 modes leave of three fields")
plt.show()

# %%
# The permeability differs at opposite walls, and so do the coordinates that an FNO gets as inputs; its activations carry both.
# A periodic series has to jump there. A cosine series continues a field by its mirror image, which does not jump.
#
# The pressure is zero at every wall, so its periodic continuation does not jump either. It has a kink, because u has a slope
# at a wall, and the mirror image has one too. For u cosines gain nothing there.

# %%
# What dictionaries make of it
# ----------------------------
# Three dictionaries, without and with a pointwise skip, from three seeds each. At most four concepts are expressed at a point.
# A Fourier multiplier has a phase, by which a concept can shift what it writes; a cosine multiplier is real and acts as an
# even kernel. So between the usual Fourier dictionary and the cosines stands one of even Fourier kernels. A kernel has 81
# independent real numbers per channel; an even Fourier kernel 41.

maps = {}
print(f"{'skip':<8}{'dictionary':<14}{'near walls':<25}{'inside':<25}{'everywhere':<25}concepts per point")
for skip in (None, "linear"):
    for name, basis in (("Fourier", None), ("Fourier, even", "fourier"), ("cosine", "cosine")):
        layer = {"conv_module": RealConv, "conv_options": {"basis": basis}} if basis else {}
        errors, expressed = [], []
        for seed in range(3):
            torch.manual_seed(seed)
            sae = ns.SAEFNO(16, 16, (9, 9), skip=skip, domain_rule=ns.SoftLocalTopK(4), **layer)
            ns.train(sae, activations[:100], ns.TrainingConfig(n_epochs=8, learning_rate=6e-3, seed=seed), progress=False)
            with torch.no_grad():
                output = sae(held_out)
            errors.append(error_map(held_out, output.reconstruction))
            expressed.append(float(output.codes.l0_local()))
        maps[name, skip] = torch.stack(errors).mean(0)
        columns = ["".join(f"{e[place].mean():<8.4f}" for e in errors) for place in (NEAR, ~NEAR, NEAR | ~NEAR)]
        print(f"{skip!s:<8}{name:<14}", *columns, f"{sum(expressed) / 3:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for (name, skip), error in maps.items():
    axes[0 if skip is None else 1].semilogy(by_distance(error), label=name, color=COLORS[name])
for axis, title in zip(axes, ("no skip", "pointwise skip"), strict=True):
    axis.set(title=title, xlabel="grid steps from the nearest wall", ylabel="squared error / variance")
axes[0].legend(fontsize=8, frameon=False)
figure.suptitle(f"Error of dictionaries on {SITE}, mean of three seeds")
plt.show()

# %%
# Without a skip the modes write everything. There the cosine dictionary misses less at the walls than either Fourier one.
# Against even kernels, of its own kind though with half as many numbers, it is better inside as well. Free kernels are better
# inside, and level with it over the whole domain.
#
# A pointwise skip, the default, copies values without any basis, jumps included. What the cosines gain at the walls over free
# Fourier kernels is then no more than the spread of the seeds, and inside they lose. So cosines are for dictionaries in which
# the modes have to say everything.
