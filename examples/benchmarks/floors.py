"""Floors: the operations and bytes that each part of our training step cannot do without, at the rates of this machine.

Counted for a dense SAEFNO with the domain rule Rectify. Letters: B samples, m channels, p concepts, K modes, N points, n pairs
that are on (B k), c candidates (B k oversample; none with ``selection="energy"``), U rows that a step uses.

Memory traffic is charged at the rate of a large copy. Sizes that stay in the cache from one part to the next, as those of
``--quick`` do, can undercut it: compare at the reference setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from common import alternate, clock
from contestants import Setting, trainer_run
from torch import Tensor

from neuralop_sae.layers.rows import RowGradient, RowGradients
from neuralop_sae.training.losses import unexplained_variance
from neuralop_sae.training.run import Run


@dataclass(frozen=True)
class Rates:
    """Measured on this machine: operations and bytes (read and written both count) per second."""

    sgemm: float
    complex_bmm: float
    cache_copy: float
    large_copy: float


def measure_rates(device: torch.device, *, large_bytes: int = 2**29, size: int = 2048, repeats: int = 7) -> Rates:
    """The fastest of some repeats: sgemm of size^3, complex products in batches of 256^3 and in the shape of the energies, and
    copies within the cache (512 KiB) and far beyond it."""

    def best(run: Callable[[], object]) -> float:
        return alternate({"": run}, device, repeats=repeats)[""].minimum

    a, b, out = (torch.randn(size, size, device=device) for _ in range(3))
    sgemm = 2 * size**3 / best(partial(torch.mm, a, b, out=out))
    products = []
    for batch, rows, inner, columns in ((16, 256, 256, 256), (144, 16, 64, 256)):
        left = torch.randn(batch, rows, inner, dtype=torch.cfloat, device=device)
        right = torch.randn(batch, inner, columns, dtype=torch.cfloat, device=device)
        to = torch.empty(batch, rows, columns, dtype=torch.cfloat, device=device)
        products.append(8 * batch * rows * inner * columns / best(partial(torch.bmm, left, right, out=to)))

    def copy_rate(n_bytes: int, times: int) -> float:
        source, target = (torch.ones(n_bytes // 4, device=device) for _ in range(2))

        def run() -> None:
            for _ in range(times):
                target.copy_(source)

        return 2 * n_bytes * times / best(run)

    return Rates(sgemm, max(products), copy_rate(2**19, 200), copy_rate(large_bytes, 1))


@dataclass(frozen=True)
class Part:
    """What one part of the step needs: operations on reals, on complex numbers (8 to a multiply-add), and bytes."""

    real: float
    complex: float
    bytes: float

    def floor(self, rates: Rates) -> float:
        """Seconds: arithmetic and memory traffic side by side, the longer of the two."""
        return max(self.real / rates.sgemm + self.complex / rates.complex_bmm, self.bytes / rates.large_copy)


def count(s: Setting, oversample: int, used_rows: int) -> dict[str, Part]:
    """Operations and bytes of each part, in the order of the step.

    A transform of one map costs F = 2.5 N log2 g + 5 g log2 g (modes/2 + 1) operations on a g x g grid, columns beyond
    the kept modes being dropped after the first axis. A tensor that is larger than the cache is counted once where it is
    written and once where it is read; rows of weights are read once per pair.
    """
    side = s.code_grid or s.grid
    B, m, p, K, N, U = s.batch, s.channels, s.concepts, s.n_modes, side**2, used_rows
    n = B * s.k
    c = min(s.k * oversample, p) * B if s.selection == "two_stage" else 0
    F = 2.5 * N * math.log2(side) + 5 * side * math.log2(side) * (s.modes // 2 + 1)
    P = 1 if s.skip else 0  # terms of the pointwise skip

    def codes_of(pairs: int) -> Part:
        """Gather rows, contract them with the sample, synthesise, add the skip, rectify, take the norm."""
        return Part(pairs * (F + 3 * N + 2 * P * m * N), 8 * pairs * m * K, pairs * (8 * m * K + 8 * N))

    numbers = 2 * U * (2 * m * K + P * m)  # reals in the gradient rows of both layers
    return {
        "analysis": Part(B * m * (2 * N + F), 0, B * m * (12 * N + 8 * K)),
        "kernel norms": Part(8 * p * m * K, 0, 8 * p * m * K + 4 * P * p * m),
        "energies": Part(
            4 * p * B * K + P * (4 * p * m * K * B + 2 * B * m * m * (N + p)),
            8 * p * m * K * B,
            8 * p * m * K + 8 * B * m * K + P * 4 * (p * m + B * m * N),
        ),
        "candidates": codes_of(c),
        "codes": codes_of(n),
        "decoder and loss": Part(
            n * F + B * m * (F + 3 * N) + 2 * P * n * m * N, 8 * n * m * K, n * (8 * m * K + 4 * N) + 16 * B * m * N
        ),
        "backward": Part(
            B * m * F + n * (2 * F + N) + 6 * P * n * m * N, 8 * n * m * K, n * (8 * m * K + 16 * N) + 8 * B * m * N
        ),
        # Rows of a gradient are formed in cache, a few at a time, once for the norm and once for the update.
        "gradient norm": Part(2 * numbers, 16 * n * m * K, 0),
        "Adam": Part(14 * numbers, 16 * n * m * K, 24 * numbers),
    }


def measure_parts(s: Setting, batches: list[Tensor], device: torch.device, repeats: int) -> tuple[dict[str, float], int, int]:
    """Median seconds of each part of the trainer's step, the model's oversample, and the rows that a step used."""
    sae = s.model(device)
    run = trainer_run(sae, batches[0])
    measured: dict[str, list[float]] = {}
    used = 0
    for turn in range(repeats + 2):
        seconds, by_row = _one_step_in_parts(run, batches[turn % len(batches)], device)
        used = max(len(gradient.index) for gradient in by_row)
        if turn >= 2:
            for name, value in seconds.items():
                measured.setdefault(name, []).append(value)
    medians = {name: sorted(values)[len(values) // 2] for name, values in measured.items()}
    return medians, sae.oversample, min(used, s.concepts)


def _one_step_in_parts(run: Run, x: Tensor, device: torch.device) -> tuple[dict[str, float], list[RowGradient]]:
    """``Run.one_step`` taken apart; it uses the model's own steps and no others."""
    sae: Any = run.sae
    seconds: dict[str, float] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        result = []
        seconds[name] = clock(lambda: result.append(work()), device)
        return result[0]

    def decode_and_compare() -> Tensor:
        return unexplained_variance(x, sae._decode(values, selection, x.shape[2:]), sae.scale, sae.basis)

    for parameter in run.update.parameters:
        parameter.grad = None
    with RowGradients() as rows:
        spectrum = part("analysis", lambda: sae._analyse(x))
        norms = part("kernel norms", sae.kernel_norms)
        estimate, bound = part("energies", lambda: sae._estimates(spectrum, norms))
        selection, scores = part("candidates", lambda: sae._rank(spectrum, norms, estimate, bound))
        values, _ = part("codes", lambda: sae._express(spectrum, selection, scores))
        loss = part("decoder and loss", decode_and_compare)
        part("backward", loss.backward)
    by_row = list(rows.sums())
    factor = part("gradient norm", lambda: run.update.clip(by_row))
    part("Adam", lambda: (run.update.optimizer.step(), run.update.row_optimizer.step(rows=by_row, scale=factor)))
    return seconds, by_row


def floor_rows(s: Setting, batches: list[Tensor], rates: Rates, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """A row for each part and one for their sum: seconds measured, seconds of the floor, their ratio, and what was counted."""
    measured, oversample, used = measure_parts(s, batches, device, repeats)
    parts = count(s, oversample, used)
    rows = [_row(name, measured[name], part.floor(rates), asdict(part)) for name, part in parts.items()]
    total = {key: sum(asdict(part)[key] for part in parts.values()) for key in ("real", "complex", "bytes")}
    rows.append(_row("sum", sum(measured.values()), sum(part.floor(rates) for part in parts.values()), total))
    return rows


def _row(name: str, measured: float, floor: float, counted: dict[str, float]) -> dict[str, Any]:
    return {
        "part": name,
        "measured (ms)": 1e3 * measured,
        "floor (ms)": 1e3 * floor,
        "ratio": measured / floor if floor else None,
        "real Gflop": counted["real"] / 1e9,
        "complex Gflop": counted["complex"] / 1e9,
        "GB": counted["bytes"] / 1e9,
    }
