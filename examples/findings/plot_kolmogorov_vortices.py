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
from neuralop_sae.analysis.agreement import pattern_correlation
from neuralop_sae.analysis.closest import closest_concepts
from neuralop_sae.analysis.conservation import shell_energy
from neuralop_sae.data.vorticity import kolmogorov_forcing, solve_vorticity
from neuralop_sae.quickstart import NavierStokes, prepare

flow = {"max_wavenumber": 15, "reynolds": 60.0, "interval": 1.0, "spin_up": 8.0, "time_step": 0.02}
problem = NavierStokes(n_train=12, n_test=12, hidden_channels=24, generator=flow)
found = prepare(problem, cache_dir="data", progress=False)
model, sae, train, test = found.operator, found.sae, found.splits.train, found.splits.coarse
print(pd.Series(found.metrics())[["fve", "loss_clean", "loss_recovered", "dead_fraction"]].round(3).to_string())

# %%
# Which physics
# -------------
# The enstrophy of a state at a scale is half the mean square of its vorticity at the wavenumbers of a band: one number per
# state, with which the norms of the codes are compared. Beside it vortices of either sign and the density of enstrophy, with
# which the codes are compared point by point. Intervals resample runs of four states of a trajectory, q-values ask whether
# another trajectory's flow would do as well.


def physics(vorticity):
    """Numbers and fields of states ``(N, 48, 48)``, by name."""
    energy = shell_energy(vorticity, sae.basis) / 2
    scales = {f"enstrophy {low}-{high}": energy[:, low : high + 1].sum(1) for low, high in ((1, 3), (4, 7), (8, 15))}
    return scales | {"vortices +": vorticity.clamp(min=0), "vortices -": (-vorticity).clamp(min=0), "density": vorticity**2 / 2}


choose, table = (
    ns.probe(sae, found.activations[part], physics(of.x[:, 0]), trajectory=of.trajectory, block=4)
    for part, of in (("train", train), ("coarse", test))
)
closest = closest_concepts(choose, held_out=table)
print(closest[["concept", "correlation", "low", "high", "chance", "q_value"]].round(3).to_string())
print(table[table.concept.isin(closest.concept)].pivot(index="concept", columns="quantity", values="correlation").round(2))
plt.figure(figures.probes_figure(table, closest.concept))
plt.suptitle("Enstrophy by wavenumber, and vortices, on held-out trajectories")

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
old = code / code.mean((1, 2), keepdim=True)
new = old.roll(12, 1)
outcomes = {"at the new places": lambda y: (y[:, 0] * new).mean((1, 2)), "at the old places": lambda y: (y[:, 0] * old).mean((1, 2))}
moved = ns.causal_test(
    model,
    problem.site,
    sae,
    start,
    vortex,
    edit=lambda concept, shift: ns.translate(concept, (shift, 0.0)),
    doses=[0.25],
    neutral=0.0,
    outcomes=outcomes,
    controls=["norm"],
    trajectory=trajectory,
    batch_size=len(start),
)
print(moved.effects[["outcome", "effect", "low", "high"]].round(3).to_string(index=False))
print(moved.tests[["outcome", "effect", "control_mean", "control_std", "p_value"]].round(3).to_string(index=False))
