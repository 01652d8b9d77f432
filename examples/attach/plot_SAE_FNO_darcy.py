"""
Attach to an FNO: after plot_FNO_darcy
======================================

neuralop's tutorial ``plot_FNO_darcy`` trains an FNO on Darcy flow at 16 x 16 points and ends with its
predictions, at 16 x 16 and, without more training, at 32 x 32. We go on from there: attach a sparse
autoencoder to that FNO and let it predict *through the concepts*, at both resolutions.

You will learn to add an autoencoder to a tutorial's operator with its own data loaders and data processor,
and to measure what the replacement costs.
"""

# %%
# Where the tutorial ends
# -----------------------
# The same model, optimiser, loss and data processor; fewer samples and epochs. The data are made here, so
# that nothing is downloaded: with a network ``load_darcy_flow_small`` gives the loaders and the processor at
# once.

import warnings

import matplotlib.pyplot as plt
import torch
from neuralop import H1Loss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from neuralop.training import AdamW
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis import figures
from neuralop_sae.data.darcy import darcy_flow

torch.manual_seed(0)
splits = darcy_flow(500, (16, 32), cache_dir="data", progress=False)
train = {"x": splits[16].x[:400], "y": splits[16].y[:400]}
tests = {n: {"x": splits[n].x[400:], "y": splits[n].y[400:]} for n in (16, 32)}
train_loader = DataLoader(TensorDataset(**train), batch_size=32, shuffle=True)
test_loaders = {n: DataLoader(TensorDataset(**test), batch_size=32) for n, test in tests.items()}

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
data_processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = FNO(n_modes=(16, 16), in_channels=1, out_channels=1, hidden_channels=32, projection_channel_ratio=2)
optimizer = AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
trainer = Trainer(model=model, n_epochs=8, data_processor=data_processor)
trainer.train(train_loader, {}, optimizer, scheduler, training_loss=H1Loss(d=2))

# %%
# Attach
# ------
# Loaders and processor are taken as they are.

site = "fno_blocks.2"
activations = ns.capture(model, site, train_loader, data_processor=data_processor)
sae = ns.SAEFNO(in_channels=32, n_concepts=64, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
ns.train(sae, activations, ns.TrainingConfig(n_epochs=8, learning_rate=6e-3), progress=False)

# %%
# What it costs
# -------------
# The relative error of the operator as it is, with the activations replaced by their reconstruction from no
# more than 4 concepts per point, and with the activations set to zero. Neither the operator nor the
# autoencoder has seen a field at 32 x 32 points.

for n, loader in test_loaders.items():
    losses = ns.faithfulness(model, site, sae, loader, data_processor=data_processor)
    names = ("loss_clean", "loss_spliced", "loss_zero_ablated", "loss_recovered")
    print(f"{n} x {n}", *(f"{name} {losses[name]:.3f}" for name in names), sep="   ")
    assert losses["loss_recovered"] > 0.9

# %%
# The same as a picture: the difference that the replacement makes, beside the error that the operator makes
# anyway.


def predict(batch):
    batch = data_processor.preprocess(dict(batch))
    with torch.no_grad():
        return data_processor.postprocess(model(batch["x"]), batch)[0]


model.eval()
data_processor.eval()
for n, test in tests.items():
    one = {name: values[:1] for name, values in test.items()}
    clean = predict(one)
    with ns.splice(model, site, sae, keep_error=False):
        through = predict(one)
    solutions = {"solution u": one["y"], "FNO": clean, "FNO through its concepts": through}
    differences = {"FNO \u2212 solution": clean - one["y"], "through concepts \u2212 FNO": through - clean}
    fields = {title: field[0, 0] for title, field in (solutions | differences).items()}
    plt.figure(figures.fields_figure(fields, shared=[list(solutions), list(differences)]))
    plt.suptitle(f"One held-out sample at {n} x {n} points")
plt.show()
