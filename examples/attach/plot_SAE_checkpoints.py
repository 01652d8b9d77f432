"""
Save both, load both: after checkpoint_FNO_darcy
================================================

neuralop's tutorial ``checkpoint_FNO_darcy`` lets the Trainer save an operator while it trains. We go on
from there: load the operator, attach an autoencoder, save that too, and load the pair as a colleague would.

You will learn that an operator and an autoencoder that were saved and loaded give the same output as
before, bit for bit, with a concept switched off as well.
"""

# %%
# Where the tutorial ends
# -----------------------
# The same model, with Tucker weights, and a Trainer that saves it after each epoch. Fewer samples and epochs,
# and data that are made here instead of downloaded.

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
from neuralop_sae.analysis.summaries import codes_of_samples, strongest_concepts
from neuralop_sae.data.darcy import darcy_flow

torch.manual_seed(0)
data = darcy_flow(500, (16, 32), cache_dir="data", progress=False)[16]
train, test = ({"x": data.x[part], "y": data.y[part]} for part in (slice(0, 400), slice(400, 500)))
train_loader = DataLoader(TensorDataset(**train), batch_size=32, shuffle=True)

in_normalizer, out_normalizer = UnitGaussianNormalizer(dim=[0, 2, 3]), UnitGaussianNormalizer(dim=[0, 2, 3])
in_normalizer.fit(train["x"])
out_normalizer.fit(train["y"])
data_processor = DefaultDataProcessor(in_normalizer, out_normalizer)

model = FNO(
    n_modes=(16, 16),
    in_channels=1,
    out_channels=1,
    hidden_channels=32,
    projection_channel_ratio=2,
    factorization="tucker",
    rank=0.42,
)
optimizer = AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
# The Trainer hands whole batches to model and loss, which warn of the entries that they do not use.
warnings.filterwarnings("ignore", message=".*unexpected keyword")
trainer = Trainer(model=model, n_epochs=6, data_processor=data_processor)
trainer.train(train_loader, {}, optimizer, scheduler, training_loss=H1Loss(d=2), save_every=1, save_dir="checkpoints")

# %%
# Load the operator and attach
# ----------------------------
# The Trainer calls it "model". neuralop's checkpoints are pickles, which can run code when they are read:
# load only those that you made or trust. The data processor is no part of it, so keep its normalisers with
# the operator.

operator = FNO.from_checkpoint("checkpoints", "model")
site = "fno_blocks.2"
activations = ns.capture(operator, site, train_loader, data_processor=data_processor)
sae = ns.SAEFNO(in_channels=32, n_concepts=32, n_modes=(9, 9), domain_rule=ns.SoftLocalTopK(4))
ns.train(sae, activations, ns.TrainingConfig(n_epochs=5, learning_rate=6e-3), progress=False)

# %%
# An autoencoder is a folder with ``config.json`` and ``model.safetensors``: plain data and tensors, no
# pickle. ``ns.load`` makes whatever kind of autoencoder the folder holds.

sae.save_pretrained("checkpoints/sae")
loaded_operator, loaded_sae = FNO.from_checkpoint("checkpoints", "model"), ns.load("checkpoints/sae")
print(type(loaded_sae).__name__, loaded_sae.config()["n_concepts"], loaded_sae.config()["domain_rule"])

# %%
# The same as before
# ------------------
# We switch off the strongest concept in both pairs and compare.

x = in_normalizer.transform(test["x"])
codes = codes_of_samples(sae, ns.capture(operator, site, x), range(4))
concept = int(strongest_concepts(codes, sae, 1)[0])


def predict(operator, sae, *edits):
    operator.eval()
    with torch.no_grad(), ns.splice(operator, site, sae, edits=edits):
        return out_normalizer.inverse_transform(operator(x))


clean = predict(operator, sae)
edited = {"made here": predict(operator, sae, ns.ablate(concept))}
edited["loaded"] = predict(loaded_operator, loaded_sae, ns.ablate(concept))
assert torch.equal(clean, predict(loaded_operator, loaded_sae))
assert torch.equal(edited["made here"], edited["loaded"])
assert not torch.equal(clean, edited["loaded"])

effects = {f"change of u without {concept},\n{name}": (output - clean)[0, 0] for name, output in edited.items()}
difference = {"loaded \u2212 made here": (edited["loaded"] - edited["made here"])[0, 0]}
plt.figure(figures.fields_figure({"prediction of u": clean[0, 0], **effects, **difference}, shared=[[*effects, *difference]]))
plt.show()

# %%
# ``ns.train`` keeps checkpoints of its own: ``checkpoint_dir=`` says where, and ``resume=True`` goes on from the
# last one.
