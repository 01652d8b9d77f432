"""``neuralop-sae probe``: which physics concepts follow."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import Field
from rich.console import Console

from ..analysis.calculus import Calculus, Globe, PeriodicBox, WalledBox
from ..analysis.probes import probe as run
from ..checkpoint import write_atomically
from ..data.labels import Labels
from ..data.store import StoredActivations
from ..layers.basis import SpectralBasis
from ..layers.spherical import SphericalBasis
from ..quickstart import check_device
from .command import Answer, command
from .shown import frame_table
from .sources import ActivationSettings, LabelSettings, SAESettings

__all__ = ["probe", "write_table"]

_SHOWN = ["concept", "quantity", "kind", "lag", "lag_unit", "correlation", "low", "high", "q_value", "auroc", "frequency"]


class ProbeSettings(LabelSettings, ActivationSettings, SAESettings):
    """Settings of ``probe``."""

    fields: Path = Field(
        description="Fields (N, *grid) and numbers (N,) of the same samples, by name: .safetensors, .npz, .pt, .nc or .zarr."
    )
    physics: list[str] | None = Field(
        None,
        description="Quantities: names of these fields, or what follows from them, as --physics vorticity --physics enstrophy "
        "from u and v. By default all the fields.",
    )
    lengths: tuple[float, ...] | None = Field(
        None,
        description="Lengths of the box, for derivatives: --lengths 6.28 --lengths 6.28. By default those of the store, or of "
        "the coordinates of a NetCDF file, else 1.",
    )
    walls: bool = Field(False, description="Whether the box has walls, as that of Darcy flow, and is not periodic.")
    radius: float | None = Field(None, gt=0, description="Radius of the sphere, for derivatives; 1 by default.")
    lags: tuple[float, ...] = Field(
        (0.0,),
        description="Compare codes at t with physics at t + lag, in units of time; of dates in days, hours, ...: the "
        "longest of which all steps are whole multiples, which the table names.",
    )
    block: int | None = Field(None, ge=1, description="Samples of a trajectory that make a block, for the intervals.")
    tiles: tuple[int, ...] | None = Field(
        None, description="Tiles along each axis of the grid, for the intervals: --tiles 2 --tiles 2."
    )
    null: str | None = Field(None, description="For p-values: exchange or translate.")
    quantile: float = Field(0.9, description="Of each quantity, above which AUROC takes it to be high.")
    confidence: float = Field(0.95, description="Of the intervals.")
    n_bootstrap: int = Field(200, description="Draws for the intervals.")
    n_permutations: int = Field(500, description="Draws for the p-values.")
    seed: int = Field(0, description="Of the draws.")
    batch_size: int = Field(16, ge=1, description="Samples at a time.")
    device: str = Field("cpu", description="cpu or cuda.")
    output: Path | None = Field(None, description="Table to write: .csv or .json.")

    def calculus(self, basis: SpectralBasis, lengths: tuple[float, ...] | None) -> Calculus | None:
        """The domain on which derivatives are taken, its lengths being those of the settings, else those given; None where
        the basis says all that is known."""
        if isinstance(basis, SphericalBasis):
            if self.lengths is not None or self.walls:
                raise ValueError("--lengths and --walls are of a box, and this model is on the sphere: give --radius")
            return None if self.radius is None else Globe(basis.grid, self.radius)
        if self.radius is not None:
            raise ValueError("--radius is that of a sphere, and this model is on a box: give --lengths")
        lengths = self.lengths or lengths
        if self.walls:
            return WalledBox(lengths or (1.0,) * basis.n_dim)
        return None if lengths is None else PeriodicBox(lengths)


@command(ProbeSettings)
def probe(settings: ProbeSettings) -> Answer:
    """Tell which concept goes with which quantity of physics, how closely, and how sure that is.

    Time and trajectories are those of the store, or of the NetCDF file. Shown are the closest pairs; --output and --json give
    the whole table.

    neuralop-sae probe --sae run/sae --activations test.zarr --fields flow.npz --physics vorticity --output probes.csv
    """
    output = settings.output
    if output is not None and output.suffix not in (".csv", ".json"):
        raise ValueError(f"--output is a .csv or .json file, got {output.name}")
    check_device(settings.device)
    activations = settings.read_activations()
    fields, labels, lengths = settings.read_fields(settings.fields)
    trajectory = labels.trajectory
    if isinstance(activations, StoredActivations):
        lengths = activations.lengths or lengths
        if activations.time is not None:
            labels = Labels(activations.time, time_units=activations.time_units)
        trajectory = trajectory if activations.trajectory is None else activations.trajectory
    sae = settings.load(settings.device)
    table = run(
        sae,
        activations,  # type: ignore[arg-type]  # a store is indexed like a tensor
        settings.physics or fields,
        fields=fields,
        calculus=settings.calculus(sae.basis, lengths),
        trajectory=trajectory,
        time=labels.time if labels.dates is None else labels.dates,
        lags=settings.lags,
        block=settings.block,
        tiles=settings.tiles,
        null=settings.null,
        quantile=settings.quantile,
        confidence=settings.confidence,
        n_bootstrap=settings.n_bootstrap,
        n_permutations=settings.n_permutations,
        seed=settings.seed,
        batch_size=settings.batch_size,
        progress=True,
    )
    if output is not None:
        write_table(table, output)
        Console(stderr=True).print(f"the table is in {output}", markup=False)
    closest = table.sort_values("correlation", key=pd.Series.abs, ascending=False).head(20)
    closest = closest[[name for name in _SHOWN if name in table]]
    return Answer({"rows": table.to_dict("records")}, [frame_table(f"The closest of {len(table)} pairs", closest)])


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as .csv or .json, atomically; :func:`neuralop_sae.cli.report.read_table` gives it back."""
    if path.suffix == ".csv":
        write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))
    else:
        write_atomically(path, lambda temporary: table.to_json(temporary, orient="records", indent=2, double_precision=15))
