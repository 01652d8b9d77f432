"""
The same codes on another grid
==============================

Neural operators act on functions, so they run on any grid. Do concepts? We train a sparse autoencoder on
activations at 32 x 32 points, encode the same samples at 64 x 64, and compare the codes at the points that
both grids share.

You will learn to judge resolution by *codes*, and to tell what the autoencoder makes of another grid from what
the operator makes of it.
"""

# %%
# Operator and autoencoder
# ------------------------
# Both see 32 x 32 points in training, as in ``plot_first_sae.py``.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import strongest_concepts
from neuralop_sae.data.darcy import darcy_flow
from neuralop_sae.metrics import pearson, relative_l2

torch.manual_seed(0)
splits = darcy_flow(240, (32, 64), cache_dir="data", progress=False)
train = {"x": splits[32].x[:200], "y": splits[32].y[:200]}
coarse, fine = ({"x": splits[n].x[200:], "y": splits[n].y[200:]} for n in (32, 64))

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

site = "fno_blocks.2"
sae = ns.SAEFNO(in_channels=16, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
activations = ns.capture(model, site, train, data_processor=processor)
ns.train(sae, activations, ns.TrainingConfig(n_epochs=6, learning_rate=6e-3), progress=False)

# %%
# Codes against activations
# -------------------------
# The same held-out samples on both grids; point 2i of the fine grid is point i of the coarse one. Four
# correlations, each over all concepts (or channels) and all shared points:
#
# - of the activations: what the operator itself changes from grid to grid;
# - of the codes of these activations;
# - of codes of one and the same function on both grids: the coarse activations, resampled to the fine grid
#   and read off again;
# - of codes of different samples: chance.

on_coarse = ns.capture(model, site, coarse, data_processor=processor)
on_fine = ns.capture(model, site, fine, data_processor=processor)
function = sae.basis.resample(on_coarse, (64, 64))

consistency = {
    "activations": pearson(on_coarse, on_fine[..., ::2, ::2]),
    "codes": ns.code_consistency(sae, on_coarse, on_fine)["code_consistency"],
    "codes of\none function": ns.code_consistency(sae, function[..., ::2, ::2], function)["code_consistency"],
    "codes of\nother samples": ns.code_consistency(sae, on_coarse, on_fine.roll(1, dims=0))["code_consistency"],
}
for name, r in consistency.items():
    print(f"{' '.join(name.split()):32s} r = {r:.4f}")
for name, fields in (("32 x 32", on_coarse), ("64 x 64", on_fine)):
    print(f"variance explained at {name}: {ns.evaluate(sae, fields)['fve']:.4f}")

# %%
# Codes of one function agree to round-off: its coefficients are the same on both grids, and ``SoftLocalTopK``
# decides point by point. What keeps the codes of the operator's activations from that is the activations: they
# are not the same function on both grids, and their codes show the difference more clearly than they do.

assert consistency["codes of\none function"] > 1 - 1e-6
assert consistency["codes of\nother samples"] < consistency["codes"] < consistency["activations"]

figure, ax = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
for i, r in enumerate(consistency.values()):
    disagreement = max(1 - r, 1e-12)
    ax.plot(disagreement, i, "o", color="#0072B2")
    ax.annotate(f"r = {r:.4f}", (disagreement, i), (8, -3), textcoords="offset points", fontsize=8)
ax.set_yticks(range(len(consistency)), list(consistency))
ax.set(xscale="log", xlim=(1e-13, 1e3), ylim=(3.5, -0.5), xlabel="1 - r at the shared points, drawn no smaller than 1e-12")
ax.set_title("Disagreement between 32 x 32 and 64 x 64 points")
plt.show()

# %%
# One sample
# ----------
# Codes of three concepts on both grids, and value against value where the grids meet.

with torch.no_grad():
    codes_coarse, codes_fine = sae.encode(on_coarse[:1]), sae.encode(on_fine[:1])
strongest = strongest_concepts(codes_coarse, sae, 3)[0].tolist()
plt.figure(figures.resolution_figure(codes_coarse, codes_fine, strongest))
plt.suptitle("Codes of one sample on two grids")
plt.show()

# %%
# Atoms on two grids
# ------------------
# The *atom* of a concept is what it writes for a unit impulse. Its spectral part is held by Fourier
# coefficients and is therefore one function, whichever grid it is drawn on: at the shared points the two
# drawings agree to round-off. (The pointwise part is the impulse itself, which a finer grid makes narrower;
# it is left out.)

atoms_coarse, atoms_fine = (sae.atoms(strongest, (n, n), pointwise=False).detach() for n in (32, 64))
difference = relative_l2(atoms_fine[..., ::2, ::2], atoms_coarse)
print(f"relative difference of atoms at the shared points: {difference:.1e}")
assert difference < 1e-5

figure, axes = plt.subplots(2, len(strongest), figsize=(8, 4.6), layout="constrained")
for row, atoms in zip(axes, (atoms_coarse, atoms_fine), strict=True):
    for ax, concept, atom in zip(row, strongest, atoms, strict=True):
        channel = int(atom.square().flatten(1).sum(1).argmax())
        limit = float(atom[channel].abs().max())
        image = ax.imshow(atom[channel], cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 1, 1, 0))
        ax.set(title=f"concept {concept}, channel {channel}, {len(atom[channel])}\u00b2 points", xticks=[], yticks=[])
        ax.title.set_fontsize(8)
        figure.colorbar(image, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
figure.suptitle("Spectral part of three atoms, in normalised units")
plt.show()
