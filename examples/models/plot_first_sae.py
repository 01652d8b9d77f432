"""
A first sparse autoencoder
==========================

What does a Fourier neural operator compute on its way from input to output? We train a small FNO on Darcy
flow, train a sparse autoencoder on the activations of one of its blocks, and draw what it finds:
*concepts*, each with a *code* that says where on the domain it is expressed, and how strongly.

You will learn the four calls that most work with this package starts from: ``capture``, ``train``,
``evaluate`` and ``faithfulness``.
"""

# %%
# Data
# ----
# Darcy flow through rock of two permeabilities: the operator maps the permeability a to the pressure u.
# Everything is dimensionless. The first run makes the samples and keeps them in the folder ``data``. With
# neuralop's own files, ``neuralop_sae.data.darcy.load_darcy`` or neuralop's ``load_darcy_flow_small`` takes
# the place of ``darcy_flow``.

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

torch.manual_seed(0)
data = darcy_flow(240, (32, 64), cache_dir="data", progress=False)[32]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 200), slice(200, 240)))

# %%
# An operator
# -----------
# An FNO, trained by neuralop's Trainer as in its tutorials. If you have an operator already, skip this part.

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

# %%
# Capture, train, evaluate
# ------------------------
# A *site* is a place in the operator whose activations can be read and replaced. We take the output of the
# third of four blocks: fields of 16 channels.

print(ns.find_sites(model))
site = "fno_blocks.2"
activations = ns.capture(model, site, train, data_processor=processor)
held_out = ns.capture(model, site, test, data_processor=processor)
print(activations.shape)

# %%
# The autoencoder writes these fields as a sum of 32 concepts, of which no more than 4 may be expressed at any
# point.

sae = ns.SAEFNO(in_channels=16, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
history = ns.train(sae, activations, ns.TrainingConfig(n_epochs=6, learning_rate=6e-3), progress=False)

# %%
# Two questions to ask of every autoencoder, on samples that it was not trained on. How much of the
# activations' variance does it explain (FVE)? And how much of the operator's accuracy is left when its
# activations are replaced by what the autoencoder makes of them? Loss recovered is 1 if the replacement costs
# nothing, and 0 if it is as bad as setting the activations to zero.

metrics = ns.evaluate(sae, held_out) | ns.faithfulness(model, site, sae, test, data_processor=processor)
for name in ("fve", "loss_recovered", "l0_local", "dead_fraction", "loss_clean", "loss_spliced"):
    print(f"{name:15s} {metrics[name]:.3f}")

# %%
# Draw
# ----
# The codes of the four concepts that write most, on four held-out samples. Lines are where the permeability
# jumps. A code is not a number: in each sample it is a function over the domain.

with torch.no_grad():
    codes = sae.encode(held_out[:4])
strongest = strongest_concepts(codes, sae, 4)[0].tolist()
plt.figure(figures.code_maps_figure(codes, strongest, range(4), background=test["x"][:4]))
plt.suptitle(f"Codes of four concepts of {site}, contours of the permeability a")
plt.show()

# %%
# Next: ``plot_concept.py`` takes one concept apart, ``plot_sparsity.py`` chooses how sparse to be, and
# ``plot_resolution.py`` asks whether codes mean the same on another grid.
