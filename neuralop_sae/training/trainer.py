"""Training of any sparse autoencoder on fields."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checkpoint
from ..layers.rows import RowGradients
from ..layers.sparsity import Rule
from ..models.base import SAE, SAEOutput
from .config import TrainingConfig
from .distributed import Mesh, Single
from .history import Meter, TrainingHistory
from .losses import Loss, auxiliary_loss, describe_loss, per_field, unexplained_variance
from .revival import DeadConcepts
from .update import Update

CHECKPOINT_NAME = "training.safetensors"


class Activations(Protocol):
    """Anything with a length that gives fields ``(B, channels, *grid)`` for a tensor of indices: a tensor, a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


def train(
    sae: SAE,
    activations: Activations,
    config: TrainingConfig | None = None,
    *,
    loss: Loss | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    parallel: Single | None = None,
) -> TrainingHistory:
    """Train a sparse autoencoder in place; it is left in eval mode, on its device.

    Each step updates the concepts that its batch used and leaves the others alone, with their own clocks
    (:class:`~neuralop_sae.training.row_adam.RowAdam`).

    Parameters
    ----------
    sae : SAE
        The model.
    activations : Tensor or store
        ``(N, channels, *grid)``; see :class:`Activations`.
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

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        If the activations do not fit the model, hold a NaN or Inf, the loss gives anything but one finite number with a
        gradient, or the checkpoint is of another run: of another model, configuration, loss or number of fields.
    TypeError
        If the loss is no callable or gives no real tensor.
    FloatingPointError
        If the parameters become NaN or Inf. The model is left in its last good state: the last checkpoint, if there is a
        folder for them.
    ConnectionError
        If another rank is lost. The last checkpoint is whole.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(5, 5), concept_rule=ns.TopK(4))
    >>> config = ns.TrainingConfig(n_epochs=1, batch_size=8)
    >>> history = ns.train(sae, torch.randn(16, 4, 12, 12), config, progress=False)
    >>> len(history.rows)
    1
    """
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = _Run(sae, activations, config or TrainingConfig(), folder, parallel, loss)
    if resume and run.checkpoint_path is not None and run.checkpoint_path.exists():
        run.load()
    else:
        run.prepare()
    return run.go(progress)


def save_pretrained(sae: SAE, folder: str | Path, parallel: Single) -> None:
    """:meth:`SAE.save_pretrained` of a model that ranks hold together: called by all, written once, whole."""
    whole = parallel.whole_state(sae.state_dict(), sae.concept_axes())
    if whole is not None:
        sae.save_pretrained(folder, state=whole)


class _Run:
    """One training run: the order of its steps, what it counts, and its state on disk."""

    def __init__(
        self,
        sae: SAE,
        activations: Activations,
        config: TrainingConfig,
        folder: Path | None,
        parallel: Single | None = None,
        loss: Loss | None = None,
    ) -> None:
        if not len(activations):
            raise ValueError("there are no activations to train on")
        if not any(True for _ in sae.parameters()):
            raise ValueError(f"a {type(sae).__name__} has no parameters to train; use its fit(activations)")
        self.sae, self.activations, self.config = sae, activations, config
        self.parallel = parallel or Single()
        self.parallel.check(sae, len(activations), config.batch_size)
        self.device = sae.mean.device
        self.loss = None
        if loss is not None:
            few = activations[torch.arange(min(4, len(activations)))].to(self.device)
            sae.normalize(few)
            self.loss = per_field(loss, few.to(sae.dtype))
        self.checkpoint_path = None if folder is None else folder / CHECKPOINT_NAME
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.steps_per_epoch = math.ceil(len(activations) / config.batch_size)
        self.n_steps = self.steps_per_epoch * config.n_epochs
        self.identity = self._identity(loss)
        self.history = TrainingHistory()
        self.step = 0

    def _begin(self) -> None:
        """Take this rank's part of the model, and make what a step needs for it."""
        self.parallel.shard_(self.sae)
        self.forward = self.parallel.wrap(self.sae)
        self.axes = self.sae.concept_axes()
        self.update = Update(self.sae, self.parallel, self.config.gradient_clip)
        self.dead = DeadConcepts(self.sae.n_concepts, self.config.dead_after, self.device)

    def prepare(self) -> None:
        """Statistics and initial dictionary from the activations, which are checked as a whole. The checkpoint of an
        earlier run in the folder is put aside."""
        mean, scale = channel_statistics(self.sae, self.activations, self.config.batch_size)
        if self.config.normalize:
            self.sae.fit_normalization(mean, scale)
        if self.config.initialize:
            generator = torch.Generator().manual_seed(self.config.seed)
            chosen = torch.randperm(len(self.activations), generator=generator)[:64]
            self.sae.initialize_from(self.activations[chosen].to(self.device), generator)
        where = self.checkpoint_path
        if where is not None and self.parallel.is_main and where.exists():
            where.replace(where.with_stem(f"{where.stem}.previous"))
        self._begin()

    def go(self, progress: bool) -> TrainingHistory:
        self.sae.train()
        last_good = self._keep()
        meter = Meter()
        quiet = not (progress and self.parallel.is_main)
        bar = tqdm(total=self.n_steps, initial=self.step, desc="train", unit="step", disable=quiet)
        try:
            with bar:
                for index in self._order():
                    started = time.perf_counter()
                    x = self.activations[self.parallel.share(index)].to(self.device)
                    meter.update(*self._one_step(x))
                    self.step += 1
                    self.history.seconds += time.perf_counter() - started
                    bar.update()
                    if self.step % self.config.log_every == 0 or self.step == self.n_steps:
                        self._synchronize()
                        bar.set_postfix(self._log(meter))
                        meter = Meter()
                    every = self.config.check_every if self.checkpoint_path is None else self.config.checkpoint_every
                    if self.step % self.config.check_every == 0 or self.step % every == 0 or self.step == self.n_steps:
                        self._check_finite()
                    if self.step % every == 0 or self.step == self.n_steps:
                        last_good = self._keep()
        except FloatingPointError:
            if last_good is None:
                assert self.checkpoint_path is not None
                last_good = self.parallel.my_state(checkpoint.read_tensors(self.checkpoint_path)[0], self._axes_of_state())
            self._restore(last_good)
            raise
        except RuntimeError as error:
            if isinstance(self.parallel, Mesh):
                raise self._lost(error) from error
            raise
        finally:
            self.sae.eval()
        return self.history

    def _keep(self) -> dict[str, Tensor] | None:
        """Keep a state to come back to: on disk where there is a folder, which spares its memory, else a copy."""
        if self.checkpoint_path is None:
            return self._state()
        self.save()
        return None

    def _lost(self, error: RuntimeError) -> ConnectionError:
        where = self.checkpoint_path
        saved = (
            f"the checkpoint in {where.parent} is whole: go on with resume"
            if where and where.exists()
            else "nothing was saved"
        )
        return ConnectionError(f"step {self.step} did not finish, another rank is probably lost ({error}); {saved}")

    def _synchronize(self) -> None:
        """Bring to one state what ranks count each for itself, and what they know of dead concepts."""
        self.dead.fields_since_on = self.parallel.least_of_data(self.dead.fields_since_on)
        for rule in (module for module in self.sae.modules() if isinstance(module, Rule)):
            for buffer in rule.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.parallel.mean_of_data(buffer))
        dead = self.parallel.sum_of_shards(self.dead.mask().sum())
        self.dead.refresh(bool(dead))
        self.dead_fraction = float(dead) / (self.sae.n_concepts * self.parallel.n_concept)

    def _order(self) -> Iterator[Tensor]:
        """Indices of each remaining step. The order of an epoch depends on (seed, epoch) only, so that a resumed run
        goes on where it stopped."""
        while self.step < self.n_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.activations), generator=generator)
            yield from order.split(self.config.batch_size)[first:]

    def _one_step(self, x: Tensor) -> tuple[Tensor, Tensor, SAEOutput]:
        config, sae = self.config, self.sae
        dead = self.dead.known if config.auxiliary_weight else None
        with RowGradients() as rows:
            out = self.forward(x, dead=dead, dead_k=config.auxiliary_k)
            unexplained = unexplained_variance(x, out.reconstruction, sae.scale, out.codes.basis)
            main = unexplained if self.loss is None else self.loss(out.reconstruction, x)
            total = main
            if out.dead_reconstruction is not None:
                residual = x - out.reconstruction
                total = total + config.auxiliary_weight * auxiliary_loss(residual, out.dead_reconstruction, out.codes.basis)
            if config.gate_weight and out.gates is not None:
                total = total + config.gate_weight * out.gates.sum() / len(x)
            self.update.step(total, rows, config.learning_rate * self._rate())
        self.dead.update(out.codes, len(x) * self.parallel.n_data)
        return main.detach(), unexplained.detach(), out

    def _rate(self) -> float:
        config, done = self.config, self.step
        rise = min(1.0, (done + 1) / max(1.0, config.warmup * self.n_steps))
        fall = min(1.0, (self.n_steps - done) / max(1.0, config.decay * self.n_steps))
        return rise * fall

    def _log(self, meter: Meter) -> dict[str, float]:
        row = meter.means(self.parallel)
        row["dead_fraction"] = self.dead_fraction
        position = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        self.history.rows.append({**position, **row, "learning_rate": self.config.learning_rate * self._rate()})
        return {name: round(value, 4) for name, value in row.items()}

    def _check_finite(self) -> None:
        if not self.update.is_finite():
            raise FloatingPointError(
                f"the parameters became NaN or Inf between steps {self.step - self.config.check_every} and {self.step}; "
                f"the model was put back to its last good state. A learning rate below {self.config.learning_rate} may help"
            )

    def _state(self) -> dict[str, Tensor]:
        """Copies of all tensors that a run needs to go on."""
        state = {f"model.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        state |= self.update.state() | self.dead.state()
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _axes_of_state(self) -> dict[str, int]:
        """Which tensors of :meth:`_state` are divided between shards, and along which axis."""
        axes = {f"model.{name}": axis for name, axis in self.axes.items()} | dict.fromkeys(self.dead.state(), 0)
        return axes | self.update.axes(self.axes)

    def _restore(self, state: dict[str, Tensor]) -> None:
        prefix = "model."
        self.sae.load_state_dict({name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)})
        self.update.load(state)
        self.dead.load(state)
        self.dead.exist = bool(self.parallel.sum_of_shards(state["dead.known"].sum()))

    def _identity(self, loss: Loss | None) -> str:
        """What a checkpoint must share with a run that resumes it."""
        run = {"model": type(self.sae).__name__, "arguments": self.sae.config(), "n_fields": len(self.activations)}
        if loss is not None:
            run["loss"] = describe_loss(loss)
        return json.dumps({**run, "config": self.config.model_dump()}, sort_keys=True)

    def save(self) -> None:
        """Write the checkpoint, if there is a folder for it."""
        if self.checkpoint_path is None:
            return
        progress = {"step": self.step, "rows": self.history.rows, "seconds": self.history.seconds}
        header = {"run": self.identity, "progress": json.dumps(progress)}
        whole = self.parallel.whole_state(self._state(), self._axes_of_state())
        if whole is not None:
            checkpoint.write_tensors(self.checkpoint_path, whole, header)

    def load(self) -> None:
        """Take up the checkpoint."""
        assert self.checkpoint_path is not None
        state, header = checkpoint.read_tensors(self.checkpoint_path)
        if header.get("run") != self.identity:
            differences = "; ".join(_differences(json.loads(header.get("run", "{}")), json.loads(self.identity)))
            raise ValueError(
                f"{self.checkpoint_path} is of another run: {differences}. Resume with the same, or train in another folder"
            )
        self._begin()
        self._restore(self.parallel.my_state(state, self._axes_of_state()))
        progress = json.loads(header["progress"])
        self.step = progress["step"]
        self.history = TrainingHistory(progress["rows"], progress["seconds"])


def channel_statistics(sae: SAE, activations: Activations, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean of each channel ``(channels,)`` and root mean square of the centred activations ``()``, by quadrature, in one
    pass. ValueError if the activations do not fit the model or hold a NaN or Inf."""
    total = square = torch.zeros((), dtype=torch.float64)
    for index in torch.arange(len(activations)).split(batch_size):
        x = activations[index].to(sae.mean.device)
        sae.normalize(x)
        x = x.double()
        weights = sae.basis.quadrature(x.shape[2:], like=x)
        total = total + (x * weights).flatten(2).sum((0, 2)).cpu()
        square = square + (x.square() * weights).flatten(2).sum((0, 2)).cpu()
    mean = total / len(activations)
    scale = (square / len(activations) - mean.square()).mean().clamp_min(0).sqrt()
    return mean.to(sae.mean), scale.to(sae.mean)


def _differences(saved: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where two descriptions of runs differ, in words."""
    for name in sorted(saved.keys() | now.keys()):
        old, new = saved.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name} was {old!r}, now {new!r}"
