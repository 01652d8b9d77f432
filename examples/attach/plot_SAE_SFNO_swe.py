"""
Concepts of an SFNO on shallow water
====================================

neuralop's tutorial ``plot_SFNO_swe`` ends with a spherical Fourier neural operator (SFNO) that steps the shallow water
equations on a rotating sphere. This one goes on from there: it trains a sparse autoencoder on a block of the SFNO, asks how
much of the operator runs through the concepts, and removes one of them from the operator while it runs.
"""

# %%
# Data and operator
# -----------------
# The operator is that of ``plot_SFNO_swe``, with 24 channels and 16 degrees to be quick: ``n_modes=(L, M)`` needs M of at
# least 2 L, because newer versions of torch-harmonics truncate triangularly. Data come from neuralop_sae's own cached
# generator, which starts from balanced winds, so that there is weather and not only gravity waves. Channels are geopotential,
# vorticity and divergence, each in units of its standard deviation; the target is the state an hour later. Held-out samples
# come from other trajectories.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.models import SFNO
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import strongest_concepts
from neuralop_sae.data.shallow_water import shallow_water
from neuralop_sae.metrics import pearson

torch.manual_seed(0)
data = shallow_water(10, ((33, 64), (65, 128)), cache_dir="data", progress=False)
(train, test), (_, fine) = (split.train_test(8) for split in data.values())

model = SFNO(n_modes=(16, 32), in_channels=3, out_channels=3, hidden_channels=24, projection_channel_ratio=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
loader = DataLoader(TensorDataset(train.x, train.y), batch_size=8, shuffle=True)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
Trainer(model=model, n_epochs=10).train(loader, {}, optimizer, scheduler, training_loss=LpLoss(d=2))

# %%
# A dictionary on the sphere
# --------------------------
# ``SAESFNO`` holds concepts in neuralop's SphericalConv: one weight per degree of the spherical harmonics, beside a pointwise
# part. The baseline is a pointwise dictionary: as many concepts, and as many expressed at each point.

site = "fno_blocks.1"
activations, held_out = ns.capture(model, site, train.x), ns.capture(model, site, test.x)
config = ns.TrainingConfig(n_epochs=10, batch_size=4, learning_rate=1e-2)

sae = ns.SAESFNO(in_channels=24, n_concepts=64, n_modes=(12, 24), domain_rule=ns.SoftLocalTopK(4))
ns.train(sae, activations, config, progress=False)
pointwise = ns.SAEPointwise(in_channels=24, n_concepts=64, k=4, grid="equiangular")
ns.train(pointwise, activations, config, progress=False)

# %%
# All averages are over the area of the sphere: a row near a pole counts for little. Loss recovered is 1 if the operator works
# as well through the concepts as by itself, and 0 if it works as badly as with the block set to zero.

measured = {}
for name, one in (("concepts on the sphere", sae), ("pointwise", pointwise)):
    measured[name] = ns.evaluate(one, held_out) | ns.faithfulness(model, site, one, {"x": test.x, "y": test.y})
    print(name, {what: round(measured[name][what], 3) for what in ("fve", "loss_recovered", "l0_local", "dead_fraction")})
print("error of the operator", round(measured["pointwise"]["loss_clean"], 3), "(persistence:", end=" ")
print(f"{float((test.x - test.y).norm() / test.y.norm()):.3f})")
assert measured["concepts on the sphere"]["fve"] > measured["pointwise"]["fve"]

# %%
# The codes are functions, so they can be asked for on a grid of twice the resolution, on which neither the operator nor the
# autoencoder was trained.

consistency = ns.code_consistency(sae, held_out, ns.capture(model, site, fine.x))
print("correlation of codes on 33 x 64 and 65 x 128:", round(consistency["code_consistency"], 5))

# %%
# Where concepts are
# ------------------
# Codes of the three strongest concepts on two held-out states, with contours of the vorticity, in a projection that keeps
# areas.

samples = [0, 20]
with torch.no_grad():
    codes = sae.encode(held_out[samples])
strongest = strongest_concepts(codes, sae, 3)[0].tolist()
plt.figure(figures.code_maps_figure(codes, strongest, range(2), background=test.x[samples, 1:2]))
plt.suptitle(f"Codes of three concepts of {site}, contours of the vorticity")
plt.show()

# %%
# Remove one
# ----------
# Take a concept out while the operator runs. What the autoencoder does not explain is kept, so that all of the difference is
# the concept's. Two of the concepts above, one at a time: the forecast changes where the concept was expressed.

first, second = strongest[:2]


@torch.no_grad()
def without(concept):
    with ns.splice(model, site, sae, edits=[ns.ablate(concept)]):
        return model(test.x)


with torch.no_grad():
    change = {concept: without(concept) - model(test.x) for concept in (first, second)}
for concept, field in change.items():
    print(f"without concept {concept} the forecast changes by {float(field.norm() / test.y.norm()):.3f} (relative L2)")

fields = {"vorticity an hour later": test.y[0, 1]}
fields |= {f"change without concept {concept}": field[0, 1] for concept, field in change.items()}
plt.figure(figures.fields_figure(fields, basis=sae.basis, shared=[list(fields)[1:]]))
plt.suptitle("vorticity in units of its standard deviation")
plt.show()

# %%
# Is that so everywhere, or only in the picture? The correlation of the size of the change with the concept's own code, and
# with the code of the other one, over all held-out states and weighted by area.

with torch.no_grad():
    maps = sae.encode(held_out).to_dense()
area = sae.basis.quadrature(test.x.shape[2:], like=test.x)
for concept, field in change.items():
    other = second if concept == first else first
    own, foreign = (pearson(field.norm(dim=1), maps[:, c], area) for c in (concept, other))
    print(f"concept {concept}: {own:.2f} with its own code, {foreign:.2f} with the other's")
    assert own > foreign
