"""
Attach to a U-NO: choose the site
=================================

neuralop's tutorial ``plot_UNO_darcy`` trains a U-shaped operator: its blocks work at different resolutions,
and horizontal skips lead around the inner ones. We go on from there and ask of each block, before and after
training an autoencoder on it: does the operator depend on what is computed here, and can concepts carry it?

You will learn to choose a site by what its ablation costs. Where an operator has a way around a block, a
good score there says little.
"""

# %%
# Where the tutorial ends
# -----------------------
# The same model, optimiser and loss; fewer samples and epochs, and data that are made here instead of
# downloaded.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import H1Loss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import UNO
from neuralop.training import AdamW
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.analysis.summaries import codes_of_samples, strongest_concepts
from neuralop_sae.data.darcy import darcy_flow

torch.manual_seed(0)
data = darcy_flow(500, (16, 32), cache_dir="data", progress=False)[16]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 400), slice(400, 500)))
train_loader = DataLoader(TensorDataset(**train), batch_size=32, shuffle=True)
test_loader = DataLoader(TensorDataset(**test), batch_size=32)

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
data_processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = UNO(
    in_channels=1,
    out_channels=1,
    hidden_channels=64,
    projection_channels=64,
    uno_out_channels=[32, 64, 64, 64, 32],
    uno_n_modes=[[8, 8], [8, 8], [4, 4], [8, 8], [8, 8]],
    uno_scalings=[[1.0, 1.0], [0.5, 0.5], [1, 1], [2, 2], [1, 1]],
    horizontal_skips_map=None,
    channel_mlp_skip="linear",
    n_layers=5,
)
optimizer = AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
Trainer(model=model, n_epochs=4, data_processor=data_processor).train(
    train_loader, {}, optimizer, scheduler, training_loss=H1Loss(d=2)
)

# %%
# The sites
# ---------
# Blocks 1 and 2 work at 8 x 8 points, the others at 16 x 16. Skips carry the output of block 0 to block 4 and
# that of block 1 to block 3, so block 2 can be gone around.

assert model.horizontal_skips_map == {4: 0, 3: 1}
sites = [f"fno_blocks.{i}" for i in range(5)]
assert set(sites) <= set(ns.find_sites(model))
activations = ns.capture(model, sites, train_loader, data_processor=data_processor)
held_out = ns.capture(model, sites, test_loader, data_processor=data_processor)

# %%
# An autoencoder for each block, all with the same number of concepts, modes and steps. 5 x 5 modes fit into 8
# x 8 points. (Loss recovered exceeds 1 where the replacement happens to make the operator's error smaller.)

saes, results = {}, {}
for site in sites:
    n_channels = activations[site].shape[1]
    sae = ns.SAEFNO(in_channels=n_channels, n_concepts=32, n_modes=(5, 5), domain_rule=ns.SoftLocalTopK(4))
    ns.train(sae, activations[site], ns.TrainingConfig(n_epochs=4, learning_rate=6e-3), progress=False)
    metrics = ns.evaluate(sae, held_out[site])
    metrics |= ns.faithfulness(model, site, sae, test_loader, data_processor=data_processor)
    saes[site], results[site] = sae, metrics
    shown = (f"{key} {metrics[key]:.3f}" for key in ("fve", "loss_spliced", "loss_zero_ablated", "loss_recovered"))
    print(f"{site} {tuple(activations[site].shape[1:])!s:12s}", *shown, sep="   ")

# %%
# Choose
# ------
# Setting block 2 to zero costs the least: the skips lead around it. Concepts found there are concepts of a
# part that the operator relies on less. An outer block is the better choice for asking what the operator
# does, an inner one for asking what the coarse grid adds.

cost = {site: metrics["loss_zero_ablated"] - metrics["loss_clean"] for site, metrics in results.items()}
assert min(cost, key=cost.get) == "fno_blocks.2"

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for offset, key, label in ((-0.2, "loss_spliced", "through concepts"), (0.2, "loss_zero_ablated", "set to zero")):
    at = [i + offset for i in range(len(sites))]
    axes[0].barh(at, [results[site][key] for site in sites], height=0.38, label=label)
axes[0].axvline(results[sites[0]]["loss_clean"], color="black", linewidth=1, label="as it is")
axes[0].set(xlabel="relative L2 error of the operator", title="What replacing a block costs")
axes[0].legend(fontsize=8, frameon=False)
axes[1].barh(range(len(sites)), [results[site]["fve"] for site in sites], color="#009E73")
axes[1].set(xlabel="fraction of variance explained", title="What concepts explain there", xlim=(0, 1))
sizes = [activations[site].shape[-1] for site in sites]
axes[0].set_yticks(range(len(sites)), [f"{site}, {n} x {n}" for site, n in zip(sites, sizes, strict=True)])
axes[0].invert_yaxis()
plt.show()

# %%
# Codes live on the grid of their block: those of the first block at 16 x 16 points, those of the inner one at
# 8 x 8.

for site in ("fno_blocks.0", "fno_blocks.2"):
    codes = codes_of_samples(saes[site], held_out[site], range(4))
    strongest = strongest_concepts(codes, saes[site], 2)[0].tolist()
    plt.figure(figures.code_maps_figure(codes, strongest, range(4), background=test["x"][:4]))
    plt.suptitle(f"Codes of two concepts of {site}, contours of the permeability a")
plt.show()
