"""
Moving a vortex of Kolmogorov flow
==================================

A Fourier neural operator (FNO) steps two-dimensional turbulence under Kolmogorov's forcing. Which of its concepts follow
enstrophy, and at which scale? And if the concept of vortices is moved, does the forecast go on as the flow would, had it
had its vortex there?

You will probe concepts with the enstrophy of bands of wavenumbers, move one vortex in the concept's code, roll the
operator out, and hold the rollout against the equations themselves.
"""

# %%
# Data, operator, autoencoder
# ---------------------------
# All from nothing, at small sizes. Held-out states come from twelve other trajectories: concepts are chosen on the first
# six, and edited on the last six.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import bootstrap

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import strongest_concepts
from neuralop_sae.data.vorticity import kolmogorov_forcing, solve_vorticity
from neuralop_sae.metrics import pearson
from neuralop_sae.quickstart import NavierStokes
from neuralop_sae.quickstart.operators import train_operator

torch.manual_seed(0)
flow = {"max_wavenumber": 15, "reynolds": 60.0, "interval": 1.0, "spin_up": 8.0, "time_step": 0.02}
problem = NavierStokes(n_train=12, n_test=12, resolutions=(32, 64), hidden_channels=24, generator=flow)
data = problem.splits(Path("data"), progress=False)
model, _ = train_operator(problem, data.train, progress=False)
first, last = data.coarse.train_test(18)

site, sae = problem.site, problem.autoencoder()
ns.train(sae, ns.capture(model, site, data.train.x), ns.TrainingConfig(n_epochs=20, learning_rate=6e-3), progress=False)
seen = ns.capture(model, site, first.x)
quality = ns.evaluate(sae, seen) | ns.faithfulness(model, site, sae, {"x": first.x, "y": first.y})
print({what: round(quality[what], 3) for what in ("fve", "loss_clean", "loss_recovered", "dead_fraction")})

# %%
# Which physics
# -------------
# Enstrophy at a scale is :math:`\omega_b^2/2` with the vorticity's wavenumbers of one band; beside it vortices of either
# sign. Intervals resample runs of four states of a trajectory, q-values ask whether another trajectory's flow would do as
# well.


def at_scale(field, low, high):
    """The part of fields with wavenumbers from low to high."""
    basis = sae.basis.resolved_by(field.shape[1:])
    number = basis.wavenumbers()
    return basis.synthesis(basis.analysis(field) * ((number >= low) & (number < high + 1)), field.shape[1:])


vorticity = first.x[:, 0]
physics = {f"enstrophy {low}-{high}": at_scale(vorticity, low, high).square() / 2 for low, high in ((1, 3), (4, 7), (8, 15))}
physics |= {"vortices +": vorticity.clamp(min=0), "vortices -": (-vorticity).clamp(min=0)}
table = ns.probe(sae, seen, physics, trajectory=first.trajectory, block=4)
closest = table.sort_values("correlation", ascending=False).groupby("quantity", sort=False)
columns = ["quantity", "concept", "correlation", "low", "high", "chance", "q_value"]
print(closest.head(1)[columns].round(3).to_string(index=False))


vortex = int(closest.get_group("vortices +").concept.iloc[0])
plt.figure(figures.probes_figure(table, closest.head(1).concept))
plt.suptitle("Enstrophy by wavenumber, and vortices")
plt.show()

# %%
# Move a vortex
# -------------
# In each of 24 states of the other six trajectories, the code of the concept is taken out of a window around its highest
# peak, and put back a quarter of the domain further along x. That happens in the first step only; then the operator goes
# on by itself. Controls: the same edit, in the same windows, of the two strongest other concepts. ``gained`` and ``lost``
# are the changes of the vorticity at the new place and at the old one, in its standard deviations, after that one step.

start = last.x[::4]
codes = sae.encode(ns.capture(model, site, start)).detach()
angle = 2 * torch.pi * torch.arange(32) / 32
bump = ((angle.cos()[:, None] + angle.cos() - 2) / (2 * torch.pi * 0.06) ** 2).exp()
peaks = codes.of(vortex).flatten(1).argmax(1).tolist()
window = torch.stack([bump.roll(divmod(peak, 32), (0, 1)) for peak in peaks])


def moved(concept):
    """An edit: the concept's code in the windows, a quarter of the domain further."""
    inside = codes.of(concept) * window
    return ns.during(ns.add(concept, inside.roll(8, 1) - inside), 0, 1)


def mean_of(values):
    """Mean over states with the interval of a bootstrap over the six trajectories."""
    means = values.double().reshape(6, -1).mean(1).numpy()
    low, high = bootstrap((means,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{means.mean():.2f} ({low:.2f} to {high:.2f})"


clean = ns.rollout(model, start, 8)
controls = [c for c in strongest_concepts(codes, sae, 4)[0].tolist() if c != vortex][:2]
states = {c: ns.rollout(model, start, 8, site=site, sae=sae, edits=moved(c)) for c in (vortex, *controls)}
for concept, edited in states.items():
    change = (edited - clean)[:, 1, 0]
    gained, lost = ((change * at).sum((1, 2)) / at.sum((1, 2)) for at in (window.roll(8, 1), window))
    print(f"concept {concept:2d}   gained {mean_of(gained)}   lost {mean_of(lost)}")

# %%
# Does the rollout follow
# -----------------------
# The states after the first step, with and without the edit, are handed to a solver of the equations. What the edit has
# changed is the difference of the two: of the operator's rollouts, and of the solver's. Their correlation tells whether the
# operator carries the moved vortex as the flow does. As a control, ``would stay`` is the solver's difference beside its own
# first one: what a change that stays where it is would get.


def solved(states):
    """What the equations make of states ``(B, 1, 32, 32)`` in 7 further steps, ``(B, 8, 1, 32, 32)``."""
    fields = [sae.basis.resample(last.physical(states), (48, 48)).double()]
    for _ in range(7):
        later = {"viscosity": 1 / 60, "drag": 0.1, "forcing": kolmogorov_forcing(48), "time_step": 0.02}
        fields.append(solve_vorticity(fields[-1], problem.lead_time, **later))
    return sae.basis.resample(torch.stack(fields, 1), (32, 32)).float() / last.std


true = {concept: solved(edited[:, 1]) - solved(clean[:, 1]) for concept, edited in states.items()}
found = {concept: (edited - clean)[:, 1:] for concept, edited in states.items()}


def alike(a, b):
    return torch.tensor([pearson(x, y) for x, y in zip(a, b, strict=True)])


for concept, change in found.items():
    for step in (1, 4, 7):
        follows, stays = alike(change[:, step], true[concept][:, step]), alike(true[concept][:, 0], true[concept][:, step])
        when = f"concept {concept:2d}, {step * problem.lead_time:.1f} time units later"
        print(f"{when}   follows {mean_of(follows)}   would stay {mean_of(stays)}")

# %%
# The first trajectory's state, and what the edit changes.

shown = {"vorticity, one step": clean[0, 1, 0], "with the vortex moved": states[vortex][0, 1, 0]}
shown |= {f"change, step {step + 1}": found[vortex][0, step, 0] for step in (0, 3, 7)}
shown["change, step 8, solver"] = true[vortex][0, 7, 0]
plt.figure(figures.fields_figure(shown, shared=[list(shown)[:2], list(shown)[2:]]))
plt.suptitle(f"A vortex of concept {vortex} moved, in standard deviations of the vorticity")
plt.show()

# %%
# What held, and what failed
# --------------------------
# On the machine that made this page concepts follow vortices of one sign closely (r = 0.91 and 0.88; 0.2 by chance). Moving
# the code of one moves vorticity: 0.30 standard deviations gained at the new place, 0.35 lost at the old, where a concept of
# the other sign moves 0.01. The operator then carries the change as the equations do: r = 0.95 after 0.2 time units and 0.71
# after 1.4, when a change that stays would have 0.11.
#
# No concept is one of enstrophy at a scale: r is 0.31 for wavenumbers 1 to 3, 0.34 for 4 to 7, 0.05 for 8 to 15. All three
# are more than chance, but the concepts are those of vortices again, or all but blind: codes tell the sign, enstrophy does
# not. The vortex is not one concept's either: the strongest concept, here a control, writes vortices of the same sign and
# moves as much; each alone moves a part of a vortex. And that the rollout follows speaks for the operator: it carries the tiny
# change of the concept of the other sign as well (0.70).
#
# The report, a page with a card for each concept, has the probes on its cards.

ns.report(sae, seen, path="kolmogorov_vortices.html", inputs=first.x, probes=table, title="Concepts of Kolmogorov flow")
