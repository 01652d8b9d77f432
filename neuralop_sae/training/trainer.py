"""Training of any sparse autoencoder on fields."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checkpoint
from ..codes import ConceptCodes
from ..layers.rows import RowGradients
from ..layers.sparsity import Rule
from ..models.base import SAE, SAEOutput
from . import saved_run
from .config import TrainingConfig
from .distributed import Mesh, Single
from .history import Meter, TrainingHistory
from .losses import Loss, auxiliary_loss, domain_penalty, per_field, unexplained_variance
from .revival import DeadConcepts
from .saved_run import CHECKPOINT_NAME
from .statistics import Activations, channel_statistics
from .update import Update

OnLog = Callable[[dict[str, float]], object]


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
        ``(N, channels, *grid)``; see :class:`~neuralop_sae.training.statistics.Activations`.
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
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(5, 5), concept_rule=ns.TopK(4))
    >>> config = ns.TrainingConfig(n_epochs=1, batch_size=8)
    >>> history = ns.train(sae, torch.randn(16, 4, 12, 12), config, progress=False)
    >>> len(history.rows)
    1
    """
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = _Run(sae, activations, config or TrainingConfig(), folder, parallel, loss, on_log=on_log)
    if resume and run.is_saved:
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
    """One training run: its steps, what it counts, and its last good state."""

    def __init__(
        self,
        sae: SAE,
        activations: Activations,
        config: TrainingConfig,
        folder: Path | None,
        parallel: Single | None = None,
        loss: Loss | None = None,
        name: str = "",
        on_log: OnLog | None = None,
    ) -> None:
        if not len(activations):
            raise ValueError("there are no activations to train on")
        if not any(True for _ in sae.parameters()):
            raise ValueError(f"a {type(sae).__name__} has no parameters to train; use its fit(activations)")
        sae.check_prefixes(config.prefixes)
        first = torch.zeros(1, dtype=torch.int64, device=sae.mean.device)
        if config.domain_weight and not sae.kernel_norms(first).requires_grad:
            raise ValueError(f"kernel norms of a {type(sae).__name__} carry no gradient: leave domain_weight at 0")
        self.sae, self.activations, self.config, self.name = sae, activations, config, name
        self.parallel, self.on_log = parallel or Single(), on_log
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
        self.identity = saved_run.identity(sae, config, len(activations), loss)
        self.history = TrainingHistory()
        self.meter = Meter()
        self.step = 0

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoint_path is not None and self.checkpoint_path.exists()

    def prepare(self) -> None:
        """Begin, with statistics of the activations, which are checked as a whole."""
        prepare([[self]])

    def start_from(self, mean: Tensor, scale: Tensor, few: Tensor) -> None:
        """Set normalisation and dictionary from statistics and a few activations. The checkpoint of an earlier run in the
        folder is put aside."""
        if self.config.normalize:
            self.sae.fit_normalization(mean, scale)
        if self.config.initialize:
            self.sae.initialize_from(few.to(self.device), self.draw_few()[1])
        if self.checkpoint_path is not None and self.parallel.is_main:
            saved_run.put_aside(self.checkpoint_path)
        self._begin()

    def draw_few(self) -> tuple[Tensor, torch.Generator]:
        """Indices of the activations from which the dictionary starts, and the generator that drew them."""
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(len(self.activations), generator=generator)[:64], generator

    def _begin(self) -> None:
        """Take this rank's part of the model, and make what a step needs for it."""
        self.parallel.shard_(self.sae)
        self.forward = self.parallel.wrap(self.sae)
        self.axes = self.sae.concept_axes()
        self.update = Update(self.sae, self.parallel, self.config.gradient_clip)
        self.dead = DeadConcepts(self.sae.n_concepts, self.config.dead_after, self.device)

    def go(self, progress: bool) -> TrainingHistory:
        """Take all steps that remain."""
        go([[self]], progress)
        return self.history

    def order(self) -> Iterator[Tensor]:
        """Indices of each remaining step. The order of an epoch depends on (seed, epoch) only, so that a resumed run
        goes on where it stopped."""
        step = self.step
        while step < self.n_steps:
            epoch, first = divmod(step, self.steps_per_epoch)
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.activations), generator=generator)
            yield from order.split(self.config.batch_size)[first:]
            step += self.steps_per_epoch - first

    def advance(self, x: Tensor) -> dict[str, float]:
        """Take a step; what there is to show, where it is logged."""
        started = time.perf_counter()
        self.meter.update(*self._one_step(x))
        self.step += 1
        self.history.seconds += time.perf_counter() - started
        shown = {}
        if self.step % self.config.log_every == 0 or self.step == self.n_steps:
            self._synchronize()
            shown = self._log()
        every = self.config.check_every if self.checkpoint_path is None else self.config.checkpoint_every
        if self.step % self.config.check_every == 0 or self.step % every == 0 or self.step == self.n_steps:
            self._check_finite()
        if self.step % every == 0 or self.step == self.n_steps:
            self.keep()
        return shown

    def keep(self) -> None:
        """Keep a state to come back to: on disk where there is a folder, which spares its memory, else a copy."""
        if self.checkpoint_path is None:
            self.last_good = self._state()
            return
        whole = self.parallel.whole_state(self._state(), self._axes_of_state())
        if whole is not None:
            progress = {"step": self.step, "rows": self.history.rows, "seconds": self.history.seconds}
            saved_run.write(self.checkpoint_path, self.identity, whole, progress)

    def fall_back(self) -> None:
        """Go back to the state that was kept last."""
        if self.checkpoint_path is None:
            self._restore(self.last_good)
        else:
            state = checkpoint.read_tensors(self.checkpoint_path)[0]
            self._restore(self.parallel.my_state(state, self._axes_of_state()))

    def lost(self, error: RuntimeError) -> ConnectionError:
        """What to say where another rank does not answer."""
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

    def _one_step(self, x: Tensor) -> tuple[Tensor, Tensor, SAEOutput]:
        config = self.config
        dead = self.dead.known if config.auxiliary_weight else None
        with RowGradients() as rows:
            out = self.forward(x, dead=dead, dead_k=config.auxiliary_k, prefixes=config.prefixes)
            unexplained = self._unexplained(out.reconstruction, x)
            whole = unexplained if self.loss is None else self.loss(out.reconstruction, x)
            parts = [(self.loss or self._unexplained)(each, x) for each in out.prefix_reconstructions]
            total = main = torch.stack([whole, *parts]).mean()
            if out.dead_reconstruction is not None:
                residual = x - out.reconstruction
                total = total + config.auxiliary_weight * auxiliary_loss(residual, out.dead_reconstruction, out.codes.basis)
            if config.gate_weight and out.gates is not None:
                total = total + config.gate_weight * out.gates.sum() / len(x)
            if config.domain_weight:
                total = total + config.domain_weight * domain_penalty(out.codes, self._norms_of(out.codes))
            self.update.step(total, rows, config.learning_rate * self._rate())
        self.dead.update(out.codes, len(x) * self.parallel.n_data)
        return main.detach(), unexplained.detach(), out

    def _norms_of(self, codes: ConceptCodes) -> Tensor:
        """Kernel norms ``(n_concepts,)`` with the gradient of those that are on; zero elsewhere."""
        on = codes.concept.unique()
        return codes.values.new_zeros(codes.n_concepts).index_copy(0, on, self.sae.kernel_norms(on))

    def _unexplained(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        return unexplained_variance(x, reconstruction, self.sae.scale, self.sae.basis)

    def _rate(self) -> float:
        config, done = self.config, self.step
        rise = min(1.0, (done + 1) / max(1.0, config.warmup * self.n_steps))
        fall = min(1.0, (self.n_steps - done) / max(1.0, config.decay * self.n_steps))
        return rise * fall

    def _log(self) -> dict[str, float]:
        row = self.meter.means(self.parallel)
        self.meter = Meter()
        row["dead_fraction"] = self.dead_fraction
        position = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        self.history.rows.append({**position, **row, "learning_rate": self.config.learning_rate * self._rate()})
        if self.on_log is not None and self.parallel.is_main:
            self.on_log(dict(self.history.rows[-1]))
        shown = {self.name: row["fve"]} if self.name else row
        return {name: round(value, 4) for name, value in shown.items()}

    def _check_finite(self) -> None:
        if not self.update.is_finite():
            of = f" of {self.name!r}" if self.name else ""
            raise FloatingPointError(
                f"the parameters{of} became NaN or Inf between steps {self.step - self.config.check_every} and {self.step}; "
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

    def load(self) -> None:
        """Take up the checkpoint."""
        assert self.checkpoint_path is not None
        state, progress = saved_run.read(self.checkpoint_path, self.identity, type(self.sae))
        self._begin()
        self._restore(self.parallel.my_state(state, self._axes_of_state()))
        self.step = progress["step"]
        self.history = TrainingHistory(progress["rows"], progress["seconds"])


def prepare(sites: Sequence[Sequence[_Run]]) -> None:
    """Begin runs; those of a site share their activations, which are read once."""
    found = [channel_statistics([run.sae for run in site], site[0].activations, site[0].config.batch_size) for site in sites]
    for site, statistics in zip(sites, found, strict=True):
        few = site[0].activations[site[0].draw_few()[0]]
        for run, (mean, scale) in zip(site, statistics, strict=True):
            run.start_from(mean, scale, few)


def go(sites: Sequence[Sequence[_Run]], progress: bool) -> None:
    """Take runs of one order to their end, in step. Those of a site share their activations: each batch is read once, for all
    that have not had it yet (a resumed run may be ahead of others). If one becomes NaN or Inf, all fall back."""
    runs = [run for site in sites for run in site]
    behind = min(runs, key=lambda run: run.step)
    quiet = not (progress and behind.parallel.is_main)
    bar = tqdm(total=behind.n_steps, initial=behind.step, desc="train", unit="step", disable=quiet)
    for run in runs:
        run.sae.train()
        run.keep()
    try:
        with bar:
            steps = pairwise(chain[Tensor | None](behind.order(), [None]))
            for step, (index, following) in enumerate(steps, start=behind.step):
                assert index is not None
                shown: dict[str, float] = {}
                for site in sites:
                    shown |= _advance([run for run in site if run.step == step], index, following)
                bar.update()
                if shown:
                    bar.set_postfix(shown)
    except FloatingPointError:
        for run in runs:
            run.fall_back()
        raise
    except RuntimeError as error:
        if isinstance(behind.parallel, Mesh):
            raise behind.lost(error) from error
        raise
    finally:
        for run in runs:
            run.sae.eval()


def _advance(runs: Sequence[_Run], index: Tensor, following: Tensor | None) -> dict[str, float]:
    """A step of runs on one site, with the one batch; what they logged."""
    if not runs:
        return {}
    started = time.perf_counter()
    activations, share = runs[0].activations, runs[0].parallel.share
    x = activations[share(index)].to(runs[0].device)
    prefetch = getattr(activations, "prefetch", None)
    if prefetch is not None and following is not None:
        prefetch(share(following), runs[0].device)
    reading = time.perf_counter() - started
    shown: dict[str, float] = {}
    for run in runs:
        run.history.seconds += reading
        shown |= run.advance(x.to(run.device))
    return shown
