"""
Sites of an operator of your own
================================

A neural operator that this package has never seen: channels last, one block that is called again and again. A *site rule* of a
few lines says how its forward pass runs, and every tool for activations then works on it.

You will learn to write such a rule and to have it checked, and to read one call among several.
"""

# %%
# The operator
# ------------
# It refines a state step by step with the same weights, as iterative solvers do. The state has its channels last,
# ``(batch, height, width, channels)``; inside the block, neuralop's convolution has them second.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, nn
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis.summaries import summarize
from neuralop_sae.data.darcy import darcy_flow
from neuralop_sae.testing import check_sites


class Refinement(nn.Module):
    """One step: a spectral convolution and a linear map of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SpectralConv(channels, channels, n_modes=(12, 12))
        self.mix = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, state: Tensor) -> Tensor:
        convolved = self.conv(state.movedim(-1, 1)).movedim(1, -1)
        return state + self.norm(nn.functional.gelu(convolved + self.mix(state)))


class RefiningOperator(nn.Module):
    """``(batch, 1, height, width)`` -> ``(batch, 1, height, width)`` in `n_steps` calls of one block.

    neuralop's Trainer hands over the target `y` too.
    """

    n_dim = 2

    def __init__(self, channels: int = 16, n_steps: int = 4) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.lifting = nn.Linear(3, channels)
        self.block = Refinement(channels)
        self.projection = nn.Linear(channels, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        positions = torch.meshgrid(*(torch.arange(n, device=x.device) / n for n in x.shape[2:]), indexing="ij")
        position = torch.stack(positions, dim=-1).expand(len(x), -1, -1, -1)
        state = self.lifting(torch.cat([x.movedim(1, -1), position], dim=-1))
        for _ in range(self.n_steps):
            state = self.block(state)
        return self.projection(state).movedim(-1, 1)


# %%
# Without a rule
# --------------
# The submodules of an unknown class are found by their paths. Each is taken to be called once, and to have its channels
# second. Here that is wrong, and not every reading notices: of a state of 4 channels on 16 x 20 points, the rows come second.

unknown, sample = RefiningOperator(channels=4), torch.randn(2, 1, 16, 20)
print("lifting:", tuple(ns.capture(unknown, "lifting", sample).shape))
try:
    ns.capture(unknown, "block", sample)
except RuntimeError as error:
    print(error)

# %%
# The rule
# --------
# One for each class, with the submodules that run as ``Stage``, in the order in which they end. The layout names the axes as
# the module has them; the block hands its own on to what is inside it. ``repeats`` names the axis that the calls run through.

LAST = "batch ... channels"


@ns.register_sites(RefiningOperator)
def _operator(module: RefiningOperator, call: int) -> tuple[ns.Stage, ...]:
    return (
        ns.Stage("lifting", layout=LAST),
        ns.Stage("block", layout=LAST, repeats="step"),
        ns.Stage("projection", layout=LAST),
    )


@ns.register_sites(Refinement)
def _block(module: Refinement, call: int) -> tuple[ns.Stage, ...]:
    return (ns.Stage("conv", layout="batch channels ..."), ns.Stage("mix"), ns.Stage("norm"))


# %%
# The contract of sites runs the operator and compares: every site fires, as often and in the order that the rules say; what is
# captured is what the module returned; putting it back changes no bit and no gradient of the output, and putting zeros there
# does; and all of it again under ``torch.compile``. Which axis is which is the rule's own word.

for site in check_sites(RefiningOperator(channels=4), sample):
    print(f"{site:<12}{', '.join(site.axes)}")
print("lifting:", tuple(ns.capture(unknown, "lifting", sample).shape))

# %%
# Training it
# -----------
# On Darcy flow, as the FNO of ``plot_first_sae.py``.

torch.manual_seed(0)
data = darcy_flow(240, (32, 64), cache_dir="data", progress=False)[32]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 200), slice(200, 240)))

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = RefiningOperator()
optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
loader = DataLoader(TensorDataset(**train), batch_size=10, shuffle=True)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
Trainer(model=model, n_epochs=8, data_processor=processor).train(loader, {}, optimizer, scheduler, training_loss=LpLoss(d=2))

# %%
# One dictionary for all steps
# ----------------------------
# ``"block"`` reads all calls of the block at once, stacked along the axis ``step``. The weights of the steps are the same, so
# one autoencoder learns from the states after every one of them.

states = ns.capture(model, "block", {name: values[:100] for name, values in train.items()}, data_processor=processor)
print(tuple(states.shape))
sae = ns.SAEFNO(in_channels=16, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
ns.train(sae, states.movedim(2, 1).flatten(0, 1), ns.TrainingConfig(n_epochs=4, learning_rate=6e-3), progress=False)

# %%
# ``"block.2"`` names the third call alone, for reading and for replacing. So we can ask at each step which concepts write, and
# what is left of the operator's accuracy when this one state is replaced by its reconstruction.

STEPS = range(model.n_steps)
shares, rows = [], []
for step in STEPS:
    held_out = ns.capture(model, f"block.{step}", test, data_processor=processor)
    shares.append(summarize(sae, held_out, n_samples=1).share)
    rows.append(ns.evaluate(sae, held_out) | ns.faithfulness(model, f"block.{step}", sae, test, data_processor=processor))
    measures = ("fve", "loss_clean", "loss_spliced", "loss_zero_ablated", "loss_recovered")
    print(f"block.{step}", *(f"{key} {rows[-1][key]:.3f}" for key in measures), sep="   ")

# %%
# Left: the share of each concept in the energy that all write, step by step, in the order of the step at which it is largest.
# Right: the operator's error with one step spliced, or set to zero.

shares = torch.stack([torch.as_tensor(share) for share in shares])
order = shares.argmax(0).argsort(stable=True)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=[1.5, 1])
image = axes[0].imshow(shares[:, order], aspect="auto", cmap="viridis", interpolation="nearest")
axes[0].set(title="which concepts write", xlabel="concept, sorted", ylabel="step", xticks=[], yticks=list(STEPS))
figure.colorbar(image, ax=axes[0], label="share of the energy")
for key, label in (("loss_zero_ablated", "set to zero"), ("loss_spliced", "spliced"), ("loss_clean", "as it is")):
    axes[1].semilogy(STEPS, [row[key] for row in rows], "o-", label=label)
axes[1].set(title="what one step does to the output", xlabel="step", ylabel="relative error of u", xticks=list(STEPS))
axes[1].legend(fontsize=8, frameon=False)
figure.suptitle("One dictionary at every step of the operator")
plt.show()

# %%
# The writing passes from some concepts to others. What the first and the last step have in common is the sum over concepts of
# the smaller share.

print(f"steps 0 and {STEPS[-1]} have {torch.minimum(shares[0], shares[-1]).sum():.2f} of their shares in common")
