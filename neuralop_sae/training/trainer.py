"""Training of any sparse autoencoder on fields."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from .. import checkpoint
from ..layers.rows import RowGradient, RowGradients
from ..layers.sparsity import Rule
from ..models.base import SAE, SAEOutput
from .distributed import Mesh, Single
from .losses import auxiliary_loss, unexplained_variance
from .revival import DeadConcepts
from .row_adam import CHUNK_BYTES, RowAdam

CHECKPOINT_NAME = "training.safetensors"


class TrainingConfig(BaseModel):
    """How to train; plain data, checked.

    Parameters
    ----------
    n_epochs, batch_size : int
        Passes over the activations, and fields per step.
    learning_rate : float
        Peak of Adam's learning rate.
    warmup, decay : float
        Shares of the steps over which the rate rises from zero and, at the end, falls to zero.
    gradient_clip : float
        Largest norm of the whole gradient.
    auxiliary_weight, auxiliary_k : float, int
        Weight of the auxiliary loss, and how many dead concepts of each sample take part.
    dead_after : int
        A concept is dead after so many *fields* without being on.
    gate_weight : float
        Weight of the number of concepts on per sample, for rules with gates (JumpReLU).
    normalize, initialize : bool
        Whether to set the model's mean and scale from the activations, and its dictionary, before the first step.
    seed : int
        Of the order of the fields and the initial dictionary.
    check_every : int
        Steps between checks for NaN and Inf, after each of which the state is kept as the last good one where there is no
        folder for checkpoints.
    checkpoint_every : int
        Steps between checkpoints, where there is a folder for them; each is checked first, and is the last good state.
    log_every : int
        Steps per row of the history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    n_epochs: int = Field(10, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    warmup: float = Field(0.05, ge=0, le=1)
    decay: float = Field(0.4, ge=0, le=1)
    gradient_clip: float = Field(1.0, gt=0)
    auxiliary_weight: float = Field(1 / 32, ge=0)
    auxiliary_k: int = Field(16, ge=1)
    dead_after: int = Field(400, ge=1)
    gate_weight: float = Field(0.0, ge=0)
    normalize: bool = True
    initialize: bool = True
    seed: int = 0
    check_every: int = Field(50, ge=1)
    checkpoint_every: int = Field(200, ge=1)
    log_every: int = Field(10, ge=1)


class Activations(Protocol):
    """Anything with a length that gives fields ``(B, channels, *grid)`` for a tensor of indices: a tensor, a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass
class TrainingHistory:
    """What happened: one row per ``log_every`` steps.

    Parameters
    ----------
    rows : list of dict
        step, epoch, loss, fve (of the training batches), l0, l0_local, dead_fraction, learning_rate.
    seconds : float
        Time spent in steps.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __getitem__(self, name: str) -> list[float]:
        """One column."""
        return [row[name] for row in self.rows]


def train(
    sae: SAE,
    activations: Activations,
    config: TrainingConfig | None = None,
    *,
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
        If the activations do not fit the model, hold a NaN or Inf, or the checkpoint is of another run.
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
    run = _Run(sae, activations, config or TrainingConfig(), folder, parallel or Single())
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
    """One training run: model, optimiser, counters, and their state on disk."""

    def __init__(
        self, sae: SAE, activations: Activations, config: TrainingConfig, folder: Path | None, parallel: Single | None = None
    ) -> None:
        if not len(activations):
            raise ValueError("there are no activations to train on")
        self.sae, self.activations, self.config = sae, activations, config
        self.parallel = parallel or Single()
        self.parallel.check(sae, len(activations), config.batch_size)
        self.device = sae.mean.device
        self.checkpoint_path = None if folder is None else folder / CHECKPOINT_NAME
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.steps_per_epoch = math.ceil(len(activations) / config.batch_size)
        self.n_steps = self.steps_per_epoch * config.n_epochs
        self.identity = self._identity()
        self.history = TrainingHistory()
        self.step = 0

    def _begin(self) -> None:
        """Take this rank's part of the model, and make what a step needs for it."""
        rate = self.config.learning_rate
        self.parallel.shard_(self.sae)
        self.forward = self.parallel.wrap(self.sae)
        self.axes = self.sae.concept_axes()
        self.names, self.parameters = map(list, zip(*self.sae.named_parameters(), strict=True))
        self.views = [_real_view(parameter) for parameter in self.parameters]
        self.optimizer = torch.optim.Adam(self.views, lr=rate, fused=True)
        self.row_optimizer = RowAdam(self.parameters, lr=rate)
        self.dead = DeadConcepts(self.sae.n_concepts, self.config.dead_after, self.device)

    def prepare(self) -> None:
        """Statistics and initial dictionary from the activations, which are checked as a whole. The checkpoint of an
        earlier run in the folder is put aside."""
        where = self.checkpoint_path
        if where is not None and self.parallel.is_main and where.exists():
            where.replace(where.with_stem(f"{where.stem}.previous"))
        mean, scale = channel_statistics(self.sae, self.activations, self.config.batch_size)
        if self.config.normalize:
            self.sae.fit_normalization(mean, scale)
        if self.config.initialize:
            generator = torch.Generator().manual_seed(self.config.seed)
            chosen = torch.randperm(len(self.activations), generator=generator)[:64]
            self.sae.initialize_from(self.activations[chosen].to(self.device), generator)
        self._begin()

    def go(self, progress: bool) -> TrainingHistory:
        self.sae.train()
        last_good = self._keep()
        meter = _Meter()
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
                        meter = _Meter()
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

    def _one_step(self, x: Tensor) -> tuple[Tensor, SAEOutput]:
        config, sae = self.config, self.sae
        dead = self.dead.known if config.auxiliary_weight else None
        with RowGradients() as rows:
            out = self.forward(x, dead=dead, dead_k=config.auxiliary_k)
            unexplained = unexplained_variance(x, out.reconstruction, sae.scale, out.codes.basis)
            loss = unexplained
            if out.dead_reconstruction is not None:
                residual = x - out.reconstruction
                loss = loss + config.auxiliary_weight * auxiliary_loss(residual, out.dead_reconstruction, out.codes.basis)
            if config.gate_weight and out.gates is not None:
                loss = loss + config.gate_weight * out.gates.sum() / len(x)
            self._update(loss, rows)
        self.dead.update(out.codes, len(x) * self.parallel.n_data)
        return unexplained.detach(), out

    def _update(self, loss: Tensor, rows: RowGradients) -> None:
        """One step of Adam; concepts that the batch did not use cost nothing (:class:`RowAdam`)."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        by_row = list(self.parallel.exchange_rows(rows).sums())
        factor = self._clip(by_row)
        for group in (*self.optimizer.param_groups, *self.row_optimizer.param_groups):
            group["lr"] = self.config.learning_rate * self._rate()
        self.optimizer.step()
        self.row_optimizer.step(rows=by_row, scale=factor)

    def _clip(self, by_row: list[RowGradient]) -> Tensor:
        """Scale the whole gradients to the largest allowed norm; give the factor, which those by row still need."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            view.grad = None if parameter.grad is None else _real_view(parameter.grad, like=parameter)
        gradients = [view.grad for view in self.views if view.grad is not None]
        zero = self.sae.scale.new_zeros(())
        shared = sum((gradient.square().sum() for gradient in gradients), zero)
        mine = sum((gradient.square_norm(CHUNK_BYTES) for gradient in by_row), zero)
        norm = (shared + self.parallel.sum_of_shards(mine)).sqrt()
        factor = (self.config.gradient_clip / norm.clamp_min(1e-6)).clamp_max(1.0)
        torch._foreach_mul_(gradients, factor)
        return factor

    def _rate(self) -> float:
        config, done = self.config, self.step
        rise = min(1.0, (done + 1) / max(1.0, config.warmup * self.n_steps))
        fall = min(1.0, (self.n_steps - done) / max(1.0, config.decay * self.n_steps))
        return rise * fall

    def _log(self, meter: _Meter) -> dict[str, float]:
        row = meter.means(self.parallel)
        row["dead_fraction"] = self.dead_fraction
        position = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        self.history.rows.append({**position, **row, "learning_rate": self.config.learning_rate * self._rate()})
        return {name: round(value, 4) for name, value in row.items()}

    def _check_finite(self) -> None:
        values = [self.sae.scale.new_zeros(()), *(view.detach().sum() for view in self.views)]
        total = torch.stack([value.to(values[0].dtype) for value in values]).sum()
        if not self.parallel.mean_of_data(self.parallel.sum_of_shards(total)).isfinite():
            raise FloatingPointError(
                f"the parameters became NaN or Inf between steps {self.step - self.config.check_every} and {self.step}; "
                f"the model was put back to its last good state. A learning rate below {self.config.learning_rate} may help"
            )

    def _state(self) -> dict[str, Tensor]:
        """Copies of all tensors that a run needs to go on."""
        state = {f"model.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for number, view in enumerate(self.views):
            for name, value in self.optimizer.state.get(view, {}).items():
                state[f"optimizer.{number}.{name}"] = value
        for number, parameter in enumerate(self.parameters):
            for name, value in self.row_optimizer.state.get(parameter, {}).items():
                state[f"row_optimizer.{number}.{name}"] = value
        state |= self.dead.state()
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _axes_of_state(self) -> dict[str, int]:
        """Which tensors of :meth:`_state` are divided between shards, and along which axis."""
        axes = {f"model.{name}": axis for name, axis in self.axes.items()} | dict.fromkeys(self.dead.state(), 0)
        for number, name in enumerate(self.names):
            if name in self.axes:
                axes |= {f"row_optimizer.{number}.{moment}": 0 for moment in ("exp_avg", "exp_avg_sq", "steps")}
        return axes

    def _restore(self, state: dict[str, Tensor]) -> None:
        prefix = "model."
        self.sae.load_state_dict({name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)})
        for number, (view, parameter) in enumerate(zip(self.views, self.parameters, strict=True)):
            for kind, moments in (
                ("optimizer", self.optimizer.state[view]),
                ("row_optimizer", self.row_optimizer.state[parameter]),
            ):
                prefix = f"{kind}.{number}."
                moments |= {name[len(prefix) :]: t.to(view.device) for name, t in state.items() if name.startswith(prefix)}
        self.dead.load(state)
        self.dead.exist = bool(self.parallel.sum_of_shards(state["dead.known"].sum()))

    def _identity(self) -> str:
        """What a checkpoint must share with a run that resumes it."""
        run = {"model": type(self.sae).__name__, "arguments": self.sae.config(), "n_fields": len(self.activations)}
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
            raise ValueError(
                f"{self.checkpoint_path} is of another run (model, configuration or number of fields differ); "
                "resume with the same, or train in another folder"
            )
        self._begin()
        self._restore(self.parallel.my_state(state, self._axes_of_state()))
        progress = json.loads(header["progress"])
        self.step = progress["step"]
        self.history = TrainingHistory(progress["rows"], progress["seconds"])


class _Meter:
    """Means over the steps since the last row, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def update(self, unexplained: Tensor, out: SAEOutput) -> None:
        codes = out.codes.detach()
        values = {"loss": unexplained, "l0": codes.l0(), "l0_local": codes.l0_local()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._n += 1

    def means(self, parallel: Single) -> dict[str, float]:
        """Over all ranks: shards add up their concepts, data ranks average."""
        sums = {name: value / self._n for name, value in self._sums.items()}
        for name in ("l0", "l0_local"):
            sums[name] = parallel.sum_of_shards(sums[name])
        row = {name: float(parallel.mean_of_data(value)) for name, value in sums.items()}
        return {"loss": row["loss"], "fve": 1.0 - row["loss"], "l0": row["l0"], "l0_local": row["l0_local"]}


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


def _real_view(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The numbers of a tensor as a contiguous real tensor that shares its memory: what fused Adam runs over. Weights are
    laid out with permuted strides; a gradient in another layout than its parameter (`like`) is copied into it."""
    like = tensor if like is None else like
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    view = tensor.detach().permute(order).contiguous()
    return torch.view_as_real(view) if view.is_complex() else view
