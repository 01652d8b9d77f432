"""
Concepts in a convolution of your own
=====================================

Any class with the signature of neuralop's ``conv_module`` can hold a dictionary. As it is, it works on a slow path, which
makes a map of every concept. A few lines that say over which basis it multiplies give the fast one.

You will learn to write these lines and to check them. The same dictionary computes the same on both paths, up to round-off.
What the fast one saves is measured on the machine that runs this page.
"""

# %%
# The convolution
# ---------------
# neuralop's SpectralConv has a complex weight per mode. Its phase can move what a concept writes away from where the code
# says that the concept is. With *real* weights :math:`W(-k) = W(k)`: every kernel is even, :math:`w(-s) = w(s)`, and centred
# on its code, with half of the numbers.
#
# So here is a SpectralConv with even kernels, as it may stand in a project that knows nothing of autoencoders. It serves an
# FNO, ``FNO(..., conv_module=EvenConv)``, too.

import time
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO
from tltorch import FactorizedTensor
from torch import Tensor
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.data.darcy import darcy_flow
from neuralop_sae.layers import ConceptDecoder, ConceptEncoder
from neuralop_sae.testing import check_concept_layer, check_model


class EvenConv(SpectralConv):
    """SpectralConv with real weights, so that kernels are even; two dimensions.

    Frequencies are in SpectralConv's order: ``-(n // 2) .. (n - 1) // 2``, and ``0 .. n // 2`` along the last dimension.
    """

    def __init__(self, *args: Any, factorization: str | None = None, rank: Any = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = tuple(self.weight.shape)
        self.weight = FactorizedTensor.new(shape, rank, factorization or "dense", dtype=torch.float32)
        self.weight.normal_(0, (2 / sum(shape[:2])) ** 0.5)

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        height, width = output_shape or x.shape[2:]
        rows, columns = self.weight.shape[2:]
        k = torch.arange(-(rows // 2), (rows + 1) // 2)  # a negative index counts from the end, as frequencies do
        kept = torch.fft.rfft2(x, norm="forward")[:, :, k, :columns]
        spectrum = kept.new_zeros(len(x), self.out_channels, height, width // 2 + 1)
        spectrum[:, :, k, :columns] = torch.einsum("bixy,ioxy->boxy", kept, self.weight.to_tensor().to(kept.dtype))
        return torch.fft.irfft2(spectrum, s=(height, width), norm="forward") + self.bias


# %%
# As it is: the dense path
# ------------------------
# The class itself is the ``conv_module``. The package knows how to call the layer, but not what is inside.

check_model(ns.SAEFNO(3, 8, (5, 5), conv_module=EvenConv, concept_rule=ns.TopK(3)), torch.randn(2, 3, 11, 12))


def dictionary(n_concepts: int) -> ns.SAEFNO:
    torch.manual_seed(0)
    return ns.SAEFNO(16, n_concepts, n_modes=(9, 9), conv_module=EvenConv, concept_rule=ns.TopK(8))


SIZES = (64, 128, 256)
dense = [dictionary(n_concepts) for n_concepts in SIZES]

# %%
# Registered: the sparse path
# ---------------------------
# A ``Convolution`` says two things: the basis whose coefficients the weight multiplies mode by mode, and how a layer is made.
# The rest follows: energies of all concepts by Parseval, rows of those that are on, and what these write.


@ns.register_concept_layer(EvenConv)
class EvenConcepts(ns.Convolution):
    """Concepts with even kernels, on a periodic box."""

    def __init__(self, n_modes: tuple[int, ...]) -> None:
        self.basis = ns.FourierBasis(n_modes)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> EvenConv:
        return EvenConv(in_channels, out_channels, self.basis.n_modes, factorization=factorization, rank=rank)


# %%
# Contracts hold the author to it: against the layer's own forward pass, for dense and for factorised weights, on odd and even
# grids, in single and double precision.

for factorization in (None, "tucker"):
    arguments = {"conv_module": EvenConv, "factorization": factorization, "rank": 0.5}
    check_concept_layer(ConceptEncoder(3, 8, (5, 4), **arguments), ConceptDecoder(3, 8, (5, 4), **arguments))
    check_model(ns.SAEFNO(3, 8, (5, 5), concept_rule=ns.TopK(3), **arguments), torch.randn(2, 3, 11, 12))

# %%
# The same dictionary on both paths
# ---------------------------------
# A model keeps the path that it was made with: those of the list ``dense`` were made before the registration. They take over
# the weights of registered ones; the scales of concepts, which an unregistered layer keeps beside its weights, become one.

sparse = [dictionary(n_concepts) for n_concepts in SIZES]
x = torch.randn(8, 16, 32, 32)
for slow, fast in zip(dense, sparse, strict=True):
    scales = {name: torch.ones_like(value) for name, value in slow.state_dict().items() if name not in fast.state_dict()}
    slow.load_state_dict(fast.state_dict() | scales)
    with torch.no_grad():
        expected, got = slow.eval()(x), fast.eval()(x)
    same = torch.equal(got.codes.concept, expected.codes.concept) and torch.equal(got.codes.sample, expected.codes.sample)
    difference = (got.reconstruction - expected.reconstruction).norm() / expected.reconstruction.norm()
    print(f"{fast.n_concepts} concepts: the same are on: {same}; reconstructions differ by {difference:.1e}")

# %%
# What it costs
# -------------
# A forward and a backward pass on eight fields, the best of five: its time, and the size of what autograd keeps in between.


def cost(sae: ns.SAEFNO) -> tuple[float, float]:
    """Milliseconds, and MiB kept for the backward pass."""
    seconds = []
    for _ in range(5):
        sizes = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sae(x).reconstruction.square().mean()
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds), sum(sizes) / 2**20


figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for name, models, color in (("as it is", dense, "#9aa0a6"), ("registered", sparse, "#0072B2")):
    measured = [cost(sae.train()) for sae in models]
    for axis, values in zip(axes, zip(*measured, strict=True), strict=True):
        axis.plot(SIZES, values, "o-", label=name, color=color)
    for n_concepts, (milliseconds, kept) in zip(SIZES, measured, strict=True):
        print(f"{name:<12}{n_concepts:>4} concepts: {milliseconds:6.0f} ms, {kept:5.1f} MiB")
for axis, label in zip(axes, ("forward and backward (ms)", "kept for the backward pass (MiB)"), strict=True):
    axis.set(xlabel="concepts", ylabel=label, xticks=SIZES, ylim=0)
axes[0].legend(fontsize=8, frameon=False)
figure.suptitle("Cost of a step against the size of the dictionary")
plt.show()

# %%
# What even kernels look like
# ---------------------------
# Two dictionaries of the activations of a small FNO on Darcy flow, as in ``plot_first_sae.py``: with SpectralConv, and with
# even kernels, which have half as many numbers. The atom of a concept is what it writes for an impulse in the middle, drawn in
# the channel where it is strongest. An even atom looks the same when it is turned by 180 degrees; how far another one is from
# that is the norm of its odd part, over the norm.

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

figure, axes = plt.subplots(2, 5, figsize=(9, 3.8), layout="constrained")
for row, conv_module in zip(axes, ("SpectralConv", "EvenConv"), strict=True):
    torch.manual_seed(0)
    sae = ns.SAEFNO(16, 24, (9, 9), conv_module=conv_module, domain_rule=ns.SoftLocalTopK(4))
    ns.train(sae, activations, ns.TrainingConfig(n_epochs=8, learning_rate=6e-3), progress=False)
    weight = sae.concept_decoder.conv.weight.tensor
    n_numbers = weight.numel() * (1 + weight.is_complex())
    fve = ns.evaluate(sae, held_out)["fve"]
    print(f"{conv_module:<14}{n_numbers:>6} numbers in the decoder's kernels, fve {fve:.4f}")
    atoms = sae.atoms(range(5), (33, 33), pointwise=False)
    odd = (atoms - atoms.flip(-1, -2)).flatten(1).norm(dim=1) / 2 / atoms.flatten(1).norm(dim=1)
    strongest = atoms.square().sum((2, 3)).argmax(1)
    for axis, atom, channel, share in zip(row, atoms, strongest, odd, strict=True):
        field = atom[channel]
        axis.imshow(field.T, origin="lower", cmap="RdBu_r", vmin=-field.abs().max(), vmax=field.abs().max())
        axis.set(title=f"odd part {share:.2f}", xticks=[], yticks=[])
    row[0].set_ylabel(conv_module)
figure.suptitle(f"Spectral part of five atoms of {SITE}")
plt.show()

# %%
# Half of the numbers buy kernels that are centred on their codes. The price is printed above: for these activations the free
# kernels explain a little more of the variance.
