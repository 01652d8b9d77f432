"""How large a dictionary on how many devices: memory, traffic and time by arithmetic, from counts that tests hold.

Every number is a formula of sizes and of the four assumed rates in :class:`Device`; nothing here is measured.

    python examples/benchmarks/plan.py
    python examples/benchmarks/plan.py --concepts 65536 --devices 2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from common import table


@dataclass(frozen=True)
class Device:
    """Assumed rates: what one device reaches, not what its data sheet promises."""

    memory: float = 80e9
    bandwidth: float = 2.0e12
    """Bytes per second from its own memory."""
    arithmetic: float = 30e12
    """Real float32 operations per second in products of matrices."""
    link: float = 100e9
    """Bytes per second to the other devices, each way."""


@dataclass(frozen=True)
class Plan:
    """A step on `shards` devices that share the dictionary. m channels, K modes, N points, k concepts on per sample."""

    concepts: int
    shards: int
    templates: int | None = None
    """Of a Tucker dictionary; None: dense."""
    skip: bool = True
    channels: int = 64
    modes: int = 16
    grid: int = 64
    k: int = 32
    oversample: int = 3
    batch: int = 32

    @property
    def n_modes(self) -> int:
        return self.modes * (self.modes // 2 + 1)

    @property
    def _own(self) -> int:
        """Concepts of one device."""
        return math.ceil(self.concepts / self.shards)

    def parameters(self) -> float:
        """Real numbers of both layers on one device."""
        m, K, r = self.channels, self.n_modes, self.templates
        spectral = 2 * self._own * m * K if r is None else 2 * self._own * r + 2 * r * m * K
        return 2 * (spectral + (self._own * m if self.skip else 0))

    def memory(self) -> float:
        """Bytes on one device: parameters, two moments, maps of the codes and candidates, the batch."""
        maps = self.batch * self.k * (2 + self.oversample) * self.grid**2
        return 4 * (3 * self.parameters() + 2 * maps + 8 * self.batch * self.channels * self.grid**2)

    def traffic(self) -> dict[str, float]:
        """Bytes that one device sends in a step; the concepts do not occur in it."""
        per_sample = 4 * self.channels * self.grid**2 if self.skip else 8 * self.channels * self.n_modes
        shared = 0 if self.templates is None else 2 * 8 * self.templates * self.channels * self.n_modes
        return {
            "candidates": 4 * self.batch * self.k * (1 + self.oversample),
            "reconstruction": self.batch * per_sample,
            "shared factors": shared,
        }

    def seconds(self, device: Device) -> dict[str, float]:
        """Floors of a step on one device; it cannot be faster than their sum."""
        B, m, K, n, p = self.batch, self.channels, self.n_modes, self.batch * self.k, self._own
        if self.templates is None:
            ranking = max(8 * p * m * K * B / device.arithmetic, 2 * 8 * p * m * K / device.bandwidth)
            rows = 2 * n / self.shards * m * K * 8 * (2 + 7) / device.bandwidth
        else:
            size = 2 * self.templates + (m if self.skip else 0) + 1
            ranking = max(2 * p * size**2 * B / device.arithmetic, 4 * p * size / device.bandwidth)
            rows = 2 * n / self.shards * self.templates * 8 * 9 / device.bandwidth
        maps = n / self.shards * (2 + self.oversample) * self.grid**2 * 4 * 6 / device.bandwidth
        ring = 2 * (self.shards - 1) / self.shards
        return {
            "ranking": ranking,
            "rows, Adam": rows,
            "maps": maps,
            "traffic": ring * sum(self.traffic().values()) / device.link,
        }


def main(
    concepts: Annotated[int, typer.Option(help="Size of the dictionary.")] = 10**6,
    devices: Annotated[int, typer.Option(help="Devices that share it.")] = 8,
    templates: Annotated[int, typer.Option(help="Of the Tucker dictionary.")] = 64,
) -> None:
    """Print the plan for a dense and a Tucker dictionary, with and without the pointwise skip."""
    device = Device()
    rows: list[dict[str, Any]] = []
    for form, count in (("dense", None), (f"Tucker, {templates} templates", templates)):
        for skip in (True, False):
            plan = Plan(concepts, devices, count, skip)
            seconds = plan.seconds(device)
            rows.append(
                {
                    "dictionary": form,
                    "skip": "linear" if skip else "none",
                    "memory per device (GB)": plan.memory() / 1e9,
                    "fits": "yes" if plan.memory() < device.memory else "no",
                    "traffic (MB)": sum(plan.traffic().values()) / 1e6,
                    **{f"{name} (ms)": 1e3 * value for name, value in seconds.items()},
                    "step, at least (ms)": 1e3 * sum(seconds.values()),
                }
            )
    table(f"{concepts:,} concepts on {devices} devices: {device}", rows)


if __name__ == "__main__":
    typer.run(main)
