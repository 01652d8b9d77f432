"""Who is compared: one setting, and what each contestant does in one step on a batch of fields.

A contestant is made once and then called with a batch ``(B, m, *grid)``; the call is one forward and backward pass, or one
whole training step with Adam.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import random_fields
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.training.losses import unexplained_variance
from neuralop_sae.training.run import Run
from neuralop_sae.training.together import begin
from neuralop_sae.training.update import real_view

Step = Callable[[Tensor], object]


@dataclass(frozen=True)
class Setting:
    """Sizes; the defaults are the reference setting of design.md."""

    channels: int = 64
    grid: int = 64
    modes: int = 16
    k: int = 32
    batch: int = 16
    concepts: int = 1024
    skip: bool = True
    selection: str = "two_stage"
    code_grid: int | None = None
    templates: int | None = None
    """Templates of a Tucker dictionary, whose other ranks are full; None: a dense dictionary."""

    @classmethod
    def tiny(cls) -> Setting:
        """For ``--quick``."""
        return cls(channels=8, grid=16, modes=8, k=4, batch=4, concepts=64)

    @property
    def n_modes(self) -> int:
        """K, complex coefficients per channel."""
        return self.modes * (self.modes // 2 + 1)

    @property
    def layer_bytes(self) -> int:
        """The spectral weight of one layer of a dense dictionary."""
        return 8 * self.concepts * self.channels * self.n_modes

    def model(self, device: torch.device | str = "cpu", seed: int = 0) -> ns.SAEFNO:
        """The model, in training mode."""
        torch.manual_seed(seed)
        arguments: dict[str, Any] = {
            "concept_rule": ns.TopK(self.k),
            "domain_rule": ns.Rectify(),
            "skip": "linear" if self.skip else None,
            "selection": self.selection,
            "code_grid": "input" if self.code_grid is None else (self.code_grid, self.code_grid),
        }
        sizes = (self.channels, self.concepts, (self.modes, self.modes))
        if self.templates is None:
            return ns.SAEFNO(*sizes, **arguments).to(device).train()
        rank = (self.channels, min(self.templates, self.concepts), self.modes, self.modes // 2 + 1)
        return ns.SAETFNO(*sizes, **arguments, factorization="tucker", rank=rank).to(device).train()

    def fields(self, n: int | None = None, device: torch.device | None = None, seed: int = 0) -> Tensor:
        """Random fields, one batch by default."""
        return random_fields(n or self.batch, self.channels, (self.grid, self.grid), device=device, seed=seed)


def _loss(sae: ns.SAE, x: Tensor, out: ns.SAEOutput) -> Tensor:
    return unexplained_variance(x, out.reconstruction, sae.scale, out.codes.basis)


def rows_pass(sae: ns.SAE) -> Step:
    """Forward, backward and the gradient's rows, as the trainer does them."""

    def step(x: Tensor) -> object:
        sae.zero_grad(set_to_none=True)
        with RowGradients() as rows:
            _loss(sae, x, sae(x)).backward()
        return list(rows.sums())

    return step


def eager_pass(sae: ns.SAE) -> Step:
    """Forward and backward with plain autograd: whole gradients, zero for all that was off."""

    def step(x: Tensor) -> None:
        sae.zero_grad(set_to_none=True)
        _loss(sae, x, sae(x)).backward()

    return step


def oracle_pass(sae: ns.SAE) -> Step:
    """Forward and backward through :meth:`dense_forward`: every code of every concept."""

    def step(x: Tensor) -> None:
        sae.zero_grad(set_to_none=True)
        _loss(sae, x, sae.dense_forward(x)).backward()

    return step


def trainer_run(sae: ns.SAE, x: Tensor) -> Run:
    """The trainer's own run on some fields, ready for ``one_step``."""
    run = Run(sae, x, ns.TrainingConfig(batch_size=len(x)), None)
    begin([[run]])
    return run


def trainer_step(sae: ns.SAE, x: Tensor) -> Step:
    """A whole step as :func:`neuralop_sae.train` does it, no concept being known as dead."""
    return trainer_run(sae, x).one_step


def oracle_step(sae: ns.SAE) -> Step:
    """:func:`oracle_pass`, gradient clipping, and fused Adam over all parameters (complex ones as pairs of reals)."""
    parameters = list(sae.parameters())
    views = [real_view(parameter) for parameter in parameters]
    optimizer = torch.optim.Adam(views, lr=3e-3, fused=True)
    both_ways = oracle_pass(sae)

    def step(x: Tensor) -> None:
        both_ways(x)
        for parameter, view in zip(parameters, views, strict=True):
            view.grad = None if parameter.grad is None else real_view(parameter.grad, like=parameter)
        nn.utils.clip_grad_norm_(views, 1.0)
        optimizer.step()

    return step


class TokenwiseSAE(nn.Module):
    """The TopK SAE of the language-model libraries in plain torch: every point of a field is a token of m channels.

    Two linear layers of p concepts, the k largest codes of a token, and codes as a dense ``(tokens, p)`` tensor, as SAELens
    and overcomplete have them by default.
    """

    def __init__(self, channels: int, concepts: int, k: int) -> None:
        super().__init__()
        self.k = k
        directions = nn.functional.normalize(torch.randn(concepts, channels), dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.T.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(concepts))
        self.decoder_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(tokens, m)`` -> ``(tokens, m)``."""
        pre_codes = (tokens - self.decoder_bias) @ self.encoder + self.encoder_bias
        values, index = torch.topk(pre_codes, self.k, dim=-1, sorted=False)
        codes = torch.zeros_like(pre_codes).scatter_(-1, index, values.relu())
        return codes @ self.decoder + self.decoder_bias


def tokens_of(x: Tensor) -> Tensor:
    """Fields ``(B, m, *grid)`` as tokens ``(B * points, m)``."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()


def tokenwise_pass(sae: nn.Module) -> Step:
    """Forward and backward on all points of the fields; their flattening is not counted by those who call with tokens."""

    def step(tokens: Tensor) -> None:
        sae.zero_grad(set_to_none=True)
        (sae(tokens) - tokens).square().mean().backward()

    return step


def with_adam(both_ways: Step, sae: nn.Module) -> Step:
    """A pass, gradient clipping and fused Adam."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3, fused=True)

    def step(tokens: Tensor) -> None:
        both_ways(tokens)
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def installed_libraries(setting: Setting, device: torch.device) -> dict[str, tuple[Step, nn.Module]]:
    """Forward-backward passes of the real SAE libraries that are installed, on tokens; says which are not."""
    makers = {"sae_lens": _sae_lens, "overcomplete": _overcomplete}
    found = {}
    for name, make in makers.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed, left out")
            continue
        try:
            found[name] = make(setting, device)
        except (ImportError, AttributeError) as error:  # overcomplete 0.3.0 does not load beside matplotlib 3.9 or newer
            print(f"{name}: installed, but does not load here ({error}), left out")
    return found


def _sae_lens(setting: Setting, device: torch.device) -> tuple[Step, nn.Module]:
    """SAELens 6: its TopK training SAE with its own loss, default arguments."""
    library = importlib.import_module("sae_lens.saes.topk_sae")
    step_input = importlib.import_module("sae_lens.saes.sae").TrainStepInput
    config = library.TopKTrainingSAEConfig(
        d_in=setting.channels, d_sae=setting.concepts, k=setting.k, device=device.type, dtype="float32"
    )
    sae = library.TopKTrainingSAE(config).to(device)

    def step(tokens: Tensor) -> None:
        sae.zero_grad(set_to_none=True)
        given = step_input(sae_in=tokens, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
        sae.training_forward_pass(given).loss.backward()

    return step, sae


def _overcomplete(setting: Setting, device: torch.device) -> tuple[Step, nn.Module]:
    """overcomplete 0.3: its TopKSAE with the default encoder (linear, batch norm, ReLU) and the mean squared error."""
    library = importlib.import_module("overcomplete.sae")
    sae = library.TopKSAE(setting.channels, setting.concepts, top_k=setting.k, device=device.type)

    def step(tokens: Tensor) -> None:
        sae.zero_grad(set_to_none=True)
        _, _, reconstruction = sae(tokens)
        (tokens - reconstruction).square().mean().backward()

    return step, sae
