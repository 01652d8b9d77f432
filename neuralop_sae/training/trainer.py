"""Training of any sparse autoencoder on fields."""

from __future__ import annotations

from pathlib import Path

from ..data.activations import opened
from ..data.store import ActivationStore
from ..models.base import SAE
from .config import TrainingConfig
from .distributed import Single
from .history import TrainingHistory
from .losses import Loss
from .run import OnLog, Run
from .statistics import Activations
from .together import begin, go

__all__ = ["TrainingConfig", "TrainingHistory", "save_pretrained", "train"]


def train(
    sae: SAE,
    activations: Activations | ActivationStore,
    config: TrainingConfig | None = None,
    *,
    loss: Loss | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    parallel: Single | None = None,
    on_log: OnLog | None = None,
) -> TrainingHistory:
    """Train a sparse autoencoder in place; it is left in eval mode, on its device.

    Each step updates the concepts that its batch used and leaves the others alone, with their own clocks
    (:class:`~neuralop_sae.training.row_adam.RowAdam`).

    Parameters
    ----------
    sae : SAE
        The model.
    activations : Tensor or store
        ``(N, channels, *grid)``; see :class:`~neuralop_sae.training.statistics.Activations`. Of a store its only site and
        grid, or one of them, as ``store["fno_blocks.2"]``.
    config : TrainingConfig, optional
        How.
    loss : callable, optional
        What to minimise in place of the unexplained variance (:func:`~neuralop_sae.training.losses.unexplained_variance`):
        neuralop's ``LpLoss(d=2)`` or ``H1Loss(d=2)``, `d` being the dimensions of the grid, or any
        ``loss(prediction, target)`` of fields ``(B, channels, *grid)`` in the units of the activations that gives one
        number. A sum over fields is taken as the mean over them; see :func:`~neuralop_sae.training.losses.per_field`.
        neuralop's two divide by the norm of each channel of each field,
        so that a channel near zero outweighs the others, and weigh all points of the grid alike, on the sphere too. The
        auxiliary loss and gates are added to it with the weights of `config`.
    checkpoint_dir : path, optional
        Folder for ``training.safetensors``: everything that a resumed run needs to go on bit for bit. That of an earlier run
        is put aside as ``training.previous.safetensors``.
    resume : bool
        Go on from the checkpoint there, if there is one.
    progress : bool
        Whether to show a progress bar.
    parallel : Single or Mesh, optional
        The ranks to train on, from :func:`neuralop_sae.training.distributed.start`. Every rank calls with the same arguments
        and the undivided model. With concept parallel ranks each is left with its shard;
        :func:`neuralop_sae.training.trainer.save_pretrained` saves the whole.
    on_log : callable, optional
        Gets a copy of each row of the history when it is logged, on the main rank: for TensorBoard, Weights & Biases and the
        like.

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        If the activations or the prefixes of `config` do not fit the model, the activations hold a NaN or Inf, the loss gives
        anything but one finite number with a gradient, or the checkpoint is of another run: of another model, configuration,
        loss or number of fields.
    TypeError
        If the loss is no callable or gives no real tensor.
    FloatingPointError
        If the parameters become NaN or Inf. The model is left in its last good state: the last checkpoint, if there is a
        folder for them.
    ConnectionError
        If another rank is lost. The last checkpoint is whole.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(5, 5), concept_rule=ns.TopK(4))
    >>> config = ns.TrainingConfig(n_epochs=1, batch_size=8)
    >>> history = ns.train(sae, torch.randn(16, 4, 12, 12), config, progress=False)
    >>> len(history.rows)
    1
    """
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = Run(sae, opened(activations), config or TrainingConfig(), folder, parallel, loss, on_log=on_log)
    if resume and run.is_saved:
        run.load()
    else:
        begin([[run]])
    go([[run]], progress)
    return run.history


def save_pretrained(sae: SAE, folder: str | Path, parallel: Single) -> None:
    """:meth:`SAE.save_pretrained` of a model that ranks hold together: called by all, written once, whole."""
    whole = parallel.whole_state(sae.state_dict(), sae.concept_axes())
    if whole is not None:
        sae.save_pretrained(folder, state=whole)
