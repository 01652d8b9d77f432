"""
Concepts and modes: after plot_incremental_FNO_darcy
====================================================

neuralop's tutorial ``plot_incremental_FNO_darcy`` trains an FNO that starts with two modes per dimension
and is given more while it learns. We go on from there: which of its concepts live on the modes that were
added?

You will learn to see which modes a trained operator uses, and to take modes away from it while you watch
its codes.
"""

# %%
# Where the tutorial ends
# -----------------------
# The same model and the same algorithm. One number differs, at most 9 modes instead of 8, for a reason that
# is given at the end. The data are made here instead of downloaded.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import H1Loss
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO
from neuralop.training import AdamW
from neuralop.training.incremental import IncrementalFNOTrainer
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import strongest_concepts
from neuralop_sae.data.darcy import darcy_flow

torch.manual_seed(0)
data = darcy_flow(500, (16, 32), cache_dir="data", progress=False)[16]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 400), slice(400, 500)))
small_loader = DataLoader(TensorDataset(train["x"][:100], train["y"][:100]), batch_size=16, shuffle=True)

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
data_processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = FNO(max_n_modes=(9, 9), n_modes=(2, 2), in_channels=1, out_channels=1, hidden_channels=32)
optimizer = AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
trainer = IncrementalFNOTrainer(
    model=model,
    n_epochs=20,
    data_processor=data_processor,
    incremental_grad=True,
    incremental_grad_eps=0.9999,
    incremental_buffer=5,
    incremental_max_iter=1,
    incremental_grad_max_iter=2,
)
trainer.train(small_loader, {}, optimizer, scheduler, regularizer=False, training_loss=H1Loss(d=2))

# %%
# Modes in use
# ------------
# Ask the convolutions, not ``model.n_modes``, which still says what it was made with. The trainer of neuralop
# 2.0.0 gives modes to the first block alone, so that is where we attach. (In the second number conjugate
# frequencies count once: 5 stands for 8 modes.)

for i, convolution in enumerate(model.fno_blocks.convs):
    print(f"block {i}: modes in use {convolution.n_modes}, at most {convolution.max_n_modes}")
first = model.fno_blocks.convs[0]
learned = first.n_modes[0]
assert learned > 2

# %%
# Attach
# ------

site = "fno_blocks.0"
activations = ns.capture(model, site, train, data_processor=data_processor)
held_out = ns.capture(model, site, test, data_processor=data_processor)
sae = ns.SAEFNO(in_channels=32, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
ns.train(sae, activations, ns.TrainingConfig(n_epochs=6, learning_rate=6e-3), progress=False)
print(f"variance explained {ns.evaluate(sae, held_out)['fve']:.3f}")

# %%
# Take the modes away again
# -------------------------
# The number of modes of a convolution can be set. With n of them we measure two things on held-out samples:
# the operator's error, and ``|a_n - a| / |a|``, by how much the code of each concept differs from what it is
# with all modes.

with torch.no_grad():
    codes = sae.encode(held_out)
concepts = strongest_concepts(codes, sae, 8)[0].tolist()
whole = codes.to_dense()[:, concepts]
in_use = list(range(2, learned + 1))
errors, changes = [], []
for n in in_use:
    first.n_modes = (n, n)
    errors.append(ns.faithfulness(model, site, sae, test, data_processor=data_processor)["loss_clean"])
    with torch.no_grad():
        reduced = sae.encode(ns.capture(model, site, test, data_processor=data_processor))
    difference = reduced.to_dense()[:, concepts] - whole
    changes.append(difference.square().sum((0, 2, 3)).sqrt() / whole.square().sum((0, 2, 3)).sqrt())
    print(f"{n} modes: error {errors[-1]:.3f}, codes change by {changes[-1].min():.2f} to {changes[-1].max():.2f}")
assert errors[0] > errors[-1]
assert float(changes[-1].max()) < 1e-5

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
axes[0].plot(in_use, errors, "o-", color="black")
axes[0].set(xlabel="modes per dimension left in block 0", ylabel="relative L2 error", title="The operator", ylim=(0, None))
for concept, change in zip(concepts, torch.stack(changes).T, strict=True):
    axes[1].plot(in_use, change, "o-", markersize=3, label=f"{concept}")
axes[1].set(xlabel="modes per dimension left in block 0", ylabel="relative change of the code")
axes[1].set_title("Its eight strongest concepts")
axes[1].legend(title="concept", fontsize=7, title_fontsize=7, ncols=2, frameon=False)
plt.show()

# %%
# Two concepts
# ------------
# With the two modes that training began with, some concepts are nearer to what they became than others. Here
# are the one that changes most and the one that changes least, in one sample: with all modes, with two, and
# the difference.

order = changes[0].argsort(descending=True).tolist()
first.n_modes = (2, 2)
with torch.no_grad():
    reduced = sae.encode(ns.capture(model, site, test, data_processor=data_processor, max_samples=1))
first.n_modes = (learned, learned)
for kind, position in (("most", order[0]), ("least", order[-1])):
    concept = concepts[position]
    full, two = whole[0, position], reduced.of(concept)[0]
    titles = (f"code of {concept}, all modes", "two modes", "two modes \u2212 all")
    shown = dict(zip(titles, (full, two, two - full), strict=True))
    plt.figure(figures.fields_figure(shown, shared=[titles[:2]]))
    plt.suptitle(f"The concept that changes {kind}: by {changes[0][position]:.0%} over all samples")
plt.show()

# %%
# Two traps
# ---------
# A checkpoint of neuralop remembers the modes that the operator was *made* with, so what comes back has two
# modes in use. Its weights are all there; set the number again.

model.save_checkpoint("checkpoints", "incremental")
loaded = FNO.from_checkpoint("checkpoints", "incremental")
print(f"modes in use in block 0: saved {first.n_modes}, loaded {loaded.fno_blocks.convs[0].n_modes}")
loaded.fno_blocks.convs[0].n_modes = (learned, learned)
x = test["x"][:4]
with torch.no_grad():
    assert torch.equal(loaded.eval()(x), model.eval()(x))

# %%
# And a mode that is added must leave the others as they are. In neuralop 2.0.0 it does if the maximum is odd.
# With an even one each frequency gets its neighbour's weight: here is what the convolution makes of a
# constant field, with two modes and with three.

for most in (8, 9):
    convolution = SpectralConv(1, 1, n_modes=(most, most), max_n_modes=(most, most), bias=False)
    response = {}
    for n in (2, 3):
        convolution.n_modes = (n, n)
        response[n] = float(convolution(torch.ones(1, 1, 16, 16)).mean())
    print(f"at most {most} modes: {response[2]:+.3f} with two, {response[3]:+.3f} with three")
