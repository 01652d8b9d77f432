"""One training run: its steps, what it counts, and its last good state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..codes import ConceptCodes
from ..layers.rows import RowGradients
from ..layers.sparsity import Rule
from ..models.base import SAE, SAEOutput
from . import saved_run
from .config import TrainingConfig
from .distributed import Single
from .history import Meter, TrainingHistory
from .losses import Loss, auxiliary_loss, domain_penalty, per_field, unexplained_variance
from .revival import DeadConcepts
from .saved_run import CHECKPOINT_NAME
from .statistics import Activations
from .update import Update

OnLog = Callable[[dict[str, float]], object]


class Run:
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
        self.update = Update(self.sae, self.parallel, self.config.gradient_clip, self.config.spectral_rate)
        self.dead = DeadConcepts(self.sae.n_concepts, self.config.dead_after, self.device)

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
        self.meter.update(*self.one_step(x))
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

    def one_step(self, x: Tensor) -> tuple[Tensor, Tensor, SAEOutput]:
        """Update the parameters by one batch; what was minimised, without auxiliary loss and penalties, the unexplained
        variance, and the forward pass."""
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
