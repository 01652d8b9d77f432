"""
Concepts on the sphere
======================

A map of latitude and longitude is not the sphere: rows near the poles stand for little area, and a shift of the image turns
the sphere about its axis only. ``SAESFNO`` holds its concepts in spherical harmonics instead. This tutorial turns the sphere,
and asks of three dictionaries whether the codes turn with it:

* zonal concepts with complex weights, one per degree, as neuralop's SphericalConv has them;
* zonal concepts with real weights (``isotropic=True``);
* a pointwise dictionary, one vector of channels per concept.
"""

# %%
# Data
# ----
# Shallow-water weather: geopotential, vorticity and divergence, each in units of its standard deviation, now and an hour
# later, on two grids of which the finer one holds the points of the other. A small SFNO learns the step;
# ``plot_SAE_SFNO_swe.py`` does that with more care. We take the output of its second block.

import matplotlib.pyplot as plt
import torch
from neuralop import LpLoss
from neuralop.models import SFNO

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.curves import spectra_figure
from neuralop_sae.analysis.summaries import strongest_concepts
from neuralop_sae.data.shallow_water import shallow_water

torch.manual_seed(0)
data = shallow_water(10, ((33, 64), (65, 128)), cache_dir="data", progress=False)
(train, test), (_, fine) = (split.train_test(8) for split in data.values())

model = SFNO(n_modes=(16, 32), in_channels=3, out_channels=3, hidden_channels=24, projection_channel_ratio=2)
optimizer, loss = torch.optim.AdamW(model.parameters(), lr=5e-3), LpLoss(d=2, p=2)
for _ in range(5):
    for batch in torch.randperm(len(train.x)).split(8):
        optimizer.zero_grad()
        loss(model(train.x[batch]), train.y[batch]).backward()
        optimizer.step()

site, vorticity = "fno_blocks.1", test.x[:, 1:2]
train, test, fine = (ns.capture(model, site, split.x) for split in (train, test, fine))

# %%
# Three dictionaries
# ------------------
# ``n_modes=(L, M)`` counts degrees, and twice the orders, as in SFNO; M is at least 2 L. At most 4 concepts may be expressed
# at a point. Norms, losses and metrics weigh points by the area that they stand for, also those of the pointwise dictionary,
# which is told its grid.

dictionaries = {
    "complex": ns.SAESFNO(24, 48, (12, 24), domain_rule=ns.SoftLocalTopK(4)),
    "real": ns.SAESFNO(24, 48, (12, 24), domain_rule=ns.SoftLocalTopK(4), isotropic=True),
    "pointwise": ns.SAEPointwise(24, 48, k=4, grid="equiangular"),
}
for sae in dictionaries.values():
    ns.train(sae, train, ns.TrainingConfig(n_epochs=10, learning_rate=6e-3), progress=False)

# %%
# Turn the sphere
# ---------------
# Two rotations map this grid to itself: a quarter turn about the axis, and half a turn about a line through the equator,
# which swaps the poles. Do the codes of turned activations equal the turned codes?


def about_the_axis(field):
    """A quarter turn towards the east."""
    return field.roll(field.shape[-1] // 4, -1)


def about_the_equator(field):
    """Half a turn about the line through longitudes 0 and 180."""
    return field.flip(-2).flip(-1).roll(1, -1)


def difference(a, b):
    """Relative L2."""
    return float((a - b).norm() / b.norm())


def measure(sae):
    with torch.no_grad():
        codes = sae.encode(test).to_dense()
        turned = {turn.__name__: sae.encode(turn(test)).to_dense() for turn in (about_the_axis, about_the_equator)}
    row = {
        "FVE": ns.evaluate(sae, test)["fve"],
        "about the axis": difference(turned["about_the_axis"], about_the_axis(codes)),
        "about the equator": difference(turned["about_the_equator"], about_the_equator(codes)),
        "codes at 65 x 128": ns.code_consistency(sae, test, fine)["code_consistency"],
        "real parameters": sum(p.numel() * (2 if p.is_complex() else 1) for p in sae.parameters()),
    }
    return row


rows = {name: measure(sae) for name, sae in dictionaries.items()}
for name, row in rows.items():
    print(f"{name:10s}", {what: float(f"{value:.3g}") for what, value in row.items()})

# %%
# All codes turn with the sphere about its axis. About the equator those of complex weights do not: coefficients of order 0
# are real, and a complex weight treats them otherwise than the rest. Real weights cost half the parameters; what they cost in
# variance explained stands above.

assert all(row["about the axis"] < 1e-3 for row in rows.values())
assert rows["real"]["about the equator"] < 1e-3 < rows["complex"]["about the equator"]

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for ax, what, form in zip(axes, ("FVE", "about the equator"), ("{:.3f}", "{:.1g}"), strict=True):
    values = [row[what] for row in rows.values()]
    bars = ax.bar(list(rows), values, color=["#0072B2", "#E69F00", "#9aa0a6"])
    ax.bar_label(bars, [form.format(value) for value in values])
axes[0].set(title="variance explained (FVE), held out", ylim=(0, 1.15))
axes[1].set(title="change of codes after half a turn", ylabel="relative L2")
axes[1].set_yscale("symlog", linthresh=1e-8)
axes[1].set_ylim(0, 2)
plt.show()

# %%
# Maps
# ----
# Maps keep areas (Mollweide's projection), so that what looks large is large. Codes of three isotropic concepts on two states
# of the weather, with contours of the vorticity.

sae = dictionaries["real"]
with torch.no_grad():
    codes = sae.encode(test[[0, 20]])
strongest = strongest_concepts(codes, sae, 3)[0].tolist()
plt.figure(figures.code_maps_figure(codes, strongest, range(2), background=vorticity[[0, 20]]))
plt.suptitle("Codes of three concepts, contours of the vorticity")
plt.show()

# %%
# What each concept writes for a unit impulse, and its energy by degree: degree l has l wavelengths around a great circle.

figure = spectra_figure(sae, strongest)
figure.axes[0].set_title("energy of three concepts by degree", fontsize=9)
plt.figure(figure)
plt.show()
