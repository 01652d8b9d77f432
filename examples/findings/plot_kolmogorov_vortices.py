"""
Scales and vortices of Kolmogorov flow
======================================

A Fourier neural operator (FNO) steps two-dimensional turbulence under Kolmogorov's forcing. Which of its concepts follow
enstrophy, and at which scale? And if the vortices of a concept are moved, does the forecast go on as the flow would, had it
had its vortices there?

You will probe concepts with the enstrophy of bands of wavenumbers and with vortices, move the code of one concept, beside
those of 19 others of the same energy, roll the operator out, and hold the rollout against the equations themselves.
"""

# %%
# Data, operator, autoencoder
# ---------------------------
# All from nothing, at small sizes: twelve trajectories to train on, twelve others held out. Concepts are chosen on the
# trajectories of the training, and all numbers are of held-out ones.

import matplotlib.pyplot as plt
import pandas as pd
import torch

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.conservation import shell_energy
from neuralop_sae.data.vorticity import kolmogorov_forcing, solve_vorticity
from neuralop_sae.quickstart import NavierStokes, prepare

flow = {"max_wavenumber": 15, "reynolds": 60.0, "interval": 1.0, "spin_up": 8.0, "time_step": 0.02}
problem = NavierStokes(n_train=12, n_test=12, hidden_channels=24, generator=flow)
found = prepare(problem, cache_dir="data", progress=False)
model, sae, train, test = found.operator, found.sae, found.splits.train, found.splits.coarse
metrics = found.metrics()
print(pd.Series(metrics)[["fve", "loss_clean", "loss_recovered", "dead_fraction"]].round(3).to_string())

# %%
# Which physics
# -------------
# The enstrophy of a state at a scale is half the mean square of its vorticity at the wavenumbers of a band: one number per
# state, with which the norms of the codes are compared. Beside it the density of enstrophy and vortices of either sign, with
# which the codes are compared point by point. Intervals resample runs of four states of a trajectory, q-values ask whether
# another trajectory's flow would do as well.


def physics(vorticity):
    """Numbers and fields of states ``(N, 48, 48)``, by name."""
    energy = shell_energy(vorticity, sae.basis) / 2
    bands = {"enstrophy 1-3": energy[:, 1:4], "enstrophy 4-7": energy[:, 4:8], "enstrophy 8-15": energy[:, 8:16]}
    fields = {
        "enstrophy": vorticity**2 / 2,
        "vortices +": vorticity * (vorticity > 0),
        "vortices -": -vorticity * (vorticity < 0),
    }
    return {name: band.sum(1) for name, band in bands.items()} | fields


choose, table = (
    ns.probe(sae, found.activations[part], physics(of.x[:, 0]), trajectory=of.trajectory, block=4)
    for part, of in (("train", train), ("coarse", test))
)
closest = ns.closest_concepts(choose, held_out=table)
print(closest[["concept", "correlation", "low", "high", "chance", "q_value"]].round(3).to_string())
print(
    table.pivot(index="concept", columns="quantity", values="correlation").loc[closest.concept.unique()].round(2).to_string()
)
plt.figure(figures.probes_figure(table, closest.concept))
plt.suptitle("Enstrophy and vortices, held out")

# %%
# Move vortices
# -------------
# In states of the held-out trajectories the code of the concept of positive vortices is moved a quarter of the domain along
# x, for one step of the operator. Outcomes are means of the vorticity after that step, in its standard deviations, each point
# counting by the code: at the places where the code is moved to, and at those where it was. Controls are 19 other concepts,
# those nearest in energy: their codes are moved as far, and their change of the activation is scaled to the same energy.

vortex = closest.concept["vortices +"]
start, trajectory = test.x[::4], test.trajectory[::4]
code = sae.encode(found.activations["coarse"][::4]).of(vortex).detach()
places = {"at the new places": code.roll(12, 1), "at the old places": code}
settings = {"doses": [0.25], "neutral": 0.0, "controls": ["norm"], "trajectory": trajectory, "batch_size": 48}
moved = ns.causal_test(
    model,
    problem.site,
    sae,
    start,
    vortex,
    edit=lambda concept, share: ns.translate(concept, (share, 0.0)),
    outcomes={name: lambda y, at=at: (y[:, 0] * at).mean((1, 2)) / at.mean((1, 2)) for name, at in places.items()},
    **settings,
)
columns = ["outcome", "effect", "low", "high", "control_mean", "control_std", "p_value"]
print(moved.tests[columns].round(3).to_string(index=False))

# %%
# Does the rollout follow
# -----------------------
# The states after that step, with and without the edit, are handed to a solver of the equations. What the edit has changed is
# the difference of the two: of the operator's rollouts, and of the solver's. The correlation of the two differences tells
# whether the operator carries the moved vortices as the flow does. Controls: ``no motion`` is the change right after the edit,
# held against what the solver later makes of it; and the concept nearest in energy is moved in the same way, not scaled. Steps
# 0, 1 and 2 of the table are 0.2, 0.8 and 1.4 time units after that step.

rival = moved.controls.concept.iloc[0]
states = [
    ns.rollout(model, start, 8, site=problem.site, sae=sae, edits=ns.during(ns.translate(concept, (share, 0.0)), 0, 1))
    for concept, share in ((vortex, 0.0), (vortex, 0.25), (rival, 0.25))
]
later = [1, 4, 7]


def solved(fields):
    """What the equations make of states ``(B, 1, 48, 48)`` in one, four and seven lead times, ``(B, 3, 1, 48, 48)``."""
    equations = {"viscosity": 1 / 60, "drag": 0.1, "time_step": 0.02, "forcing": kolmogorov_forcing(48)}
    return torch.stack([solve_vorticity(test.physical(fields), n * problem.lead_time, **equations) for n in later], 1).float()


clean, *flows = [solved(one[:, 1]) for one in states]
compared = {}
for concept, edited, flow in ((vortex, states[1], flows[0]), (rival, states[2], flows[1])):
    change = (edited - states[0])[:, 1:]
    runs = {"rollout": change[:, later], "no motion": change[:, [0, 0, 0]]}
    compared[f"concept {concept}"] = ns.pattern_correlation(runs, flow - clean, sae.basis, trajectory=trajectory)
print(pd.concat(compared, names=["moved"]).droplevel(1).round(2).to_string())

change = (states[1] - states[0])[0, :, 0]
shown = {"vorticity, one step": states[0][0, 1], "with vortices moved": states[1][0, 1], "change, step 1": change[1]}
shown |= {"change, step 8": change[8], "change, step 8, solver": (flows[0] - clean)[0, 2] / test.std[0]}
plt.figure(figures.fields_figure(shown, shared=[list(shown)[:2], list(shown)[3:]]))
plt.show()

# %%
# What held, and what failed
# --------------------------
# On the machine that made this page one concept follows positive vortices of held-out trajectories (r = 0.84, 0.84 to 0.85;
# 0.17 by chance) and another one negative ones (0.94). Moving the code of the first moves vorticity: 0.48 standard deviations
# gained at the new places (0.44 to 0.51), 0.47 lost at the old ones, five times what the codes of other concepts do that are
# moved as far at the same energy (p = 0.05, the least that 19 controls can give). The outcomes ask at this concept's places,
# and a control's code lies elsewhere: that it moves more vorticity than others is not said. The operator then carries the
# change as the equations do: r = 0.94 after 0.2 time units and 0.70 after 1.4, when a change that stays would have 0.10.
#
# Enstrophy at a scale was found at one scale only, and there by many: the norms of the codes follow the enstrophy of the
# wavenumbers 4 to 7, where the force acts, from state to state (r = 0.90, 0.86 to 0.92), and so does the concept that was
# chosen for 1 to 3 (0.91, against 0.72 with its own band) and the one for 8 to 15 (0.68 against 0.61). None has a scale of
# its own. Point by point the closest to enstrophy has r = 0.60: codes tell the sign, enstrophy does not. And that the rollout
# follows speaks for the operator, not for the concept: it carries the change of the other concept as well (0.73).
#
# The report, a page with a card for each concept, has probes and effects on its cards.

given = {"inputs": test.x, "probes": table, "effects": moved, "metrics": metrics}
ns.report(sae, found.activations["coarse"], path="kolmogorov_vortices.html", title="Concepts of Kolmogorov flow", **given)
