"""
Reading one concept
===================

A concept is an operator: it takes a scalar function, its code, and writes a field of all channels. To read
one is to answer four questions. What does it write? Where is it expressed? In which samples most? And what
does it do to the operator's output?

You will learn to answer them for one concept of an FNO on Darcy flow, beside a control: another concept,
drawn at random.
"""

# %%
# Operator and autoencoder
# ------------------------
# As in ``plot_first_sae.py``.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import code_of, codes_of_samples, summarize
from neuralop_sae.data.darcy import darcy_flow

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

site = "fno_blocks.2"
sae = ns.SAEFNO(in_channels=16, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
activations = ns.capture(model, site, train, data_processor=processor)
held_out = ns.capture(model, site, test, data_processor=processor)
ns.train(sae, activations, ns.TrainingConfig(n_epochs=6, learning_rate=6e-3), progress=False)

# %%
# Which concept
# -------------
# We take the one that writes most on held-out samples. ``share`` is its part of the energy that all concepts
# write, ``frequency`` in how many samples it is on, ``area`` the part of the domain where it is then
# expressed. The control is drawn from the five next in energy: a concept that writes next to nothing would be
# too easy a comparison.

summary = summarize(sae, held_out, n_samples=4)
by_energy = summary.energy.argsort(descending=True).tolist()
concept, control = by_energy[0], by_energy[int(torch.randint(1, 6, ()))]
for name, c in (("concept", concept), ("control", control)):
    measures = (f"{key} {float(getattr(summary, key)[c]):.2f}" for key in ("share", "frequency", "area"))
    print(f"{name} {c:2d}", *measures, sep="   ")

# %%
# What it writes
# --------------
# The atom, what the concept writes for a unit impulse of its code, and the spectrum of it. At a wavenumber
# where the spectrum is above 1 the concept strengthens its code, where it is below it damps it.

plt.figure(figures.atoms_figure(sae, [concept, control], (32, 32)))
plt.suptitle("Atoms of the concept and its control")
plt.figure(figures.spectra_figure(sae, [concept, control]))
plt.suptitle("Spectra of the two atoms")
plt.show()

# %%
# Where, and in which samples
# ---------------------------
# Its codes in the four held-out samples where it is strongest; contours show where the permeability jumps.

samples = summary.samples[concept].tolist()
codes = codes_of_samples(sae, held_out, samples)
figure = plt.figure(figures.code_maps_figure(codes, [concept, control], range(4), background=test["x"][samples]))
for ax, sample in zip(figure.axes, samples, strict=False):
    ax.set_title(f"sample {sample}")
plt.suptitle("Codes, and contours of the permeability a")
plt.show()

# %%
# What it does
# ------------
# Inside ``splice`` the operator runs with the concept switched off, or with its code doubled. What the
# autoencoder does not explain is kept, so the change of the output is the doing of this one concept.


def predict(*edits):
    batch = processor.preprocess(dict(test))
    with torch.no_grad(), ns.splice(model, site, sae, edits=edits):
        return processor.postprocess(model(batch["x"]), batch)[0]


model.eval()
processor.eval()
clean = predict()
edited = {
    f"without {concept}": predict(ns.ablate(concept)),
    f"{concept} doubled": predict(ns.steer(concept, scale=2.0)),
    f"without {control}": predict(ns.ablate(control)),
}
first = samples[0]
areas = {concept: codes.of(concept)[0] > 0, control: codes.of(control)[0] > 0}
for c in areas:
    change = (edited[f"without {c}"] - clean)[first, 0].square()
    inside, size = float(change[areas[c]].sum() / change.sum()), float(areas[c].float().mean())
    print(f"{inside:.0%} of the (squared) change without {c} lie where its code is expressed, {size:.0%} of the domain")

# %%
# The change as a field.

changes = {f"change of u, {name}": (output - clean)[first, 0] for name, output in edited.items()}
shown = {f"prediction of u, sample {first}": clean[first, 0], f"code of {concept}": code_of(codes, concept, 0), **changes}
plt.figure(figures.fields_figure(shown, shared=[list(changes)]))
plt.show()

# %%
# One control is an anecdote, so here is the same for every concept: its share of the energy against how much
# of the output changes without it, ``|u_without - u| / |u|``, the mean over held-out samples.


def relative_change(output):
    return float(((output - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)).mean())


alive = [c for c in by_energy if summary.frequency[c] > 0]
effect = {c: relative_change(predict(ns.ablate(c))) for c in alive}
figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
ax.loglog([float(summary.share[c]) for c in alive], [effect[c] for c in alive], "o", color="#9aa0a6", label="all concepts")
for c, color, label in ((concept, "#0072B2", f"concept {concept}"), (control, "#D55E00", f"control {control}")):
    ax.plot(float(summary.share[c]), effect[c], "o", color=color, markersize=8, label=label)
ax.set(xlabel="share of the energy that concepts write", ylabel="relative change of u without it")
ax.set_title("Energy and effect of each concept")
ax.legend(fontsize=8, frameon=False)
plt.show()

print(f"without concept {concept} the output changes by {effect[concept]:.1%}, without {control} by {effect[control]:.1%}")
correlation = spearmanr([float(summary.share[c]) for c in alive], [effect[c] for c in alive]).statistic
print(f"rank correlation of energy and effect over {len(alive)} concepts: {correlation:.2f}")

# %%
# Energy is what a concept writes into the activations, effect what the rest of the operator makes of it. The
# rank correlation says how far the first, which costs no run of the operator, stands for the second.
