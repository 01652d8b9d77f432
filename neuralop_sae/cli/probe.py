"""``neuralop-sae probe``: which physics concepts follow."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import Field
from rich.console import Console

from ..analysis.calculus import PeriodicBox
from ..analysis.probes import probe as run
from ..checkpoint import write_atomically
from ..data.labels import Labels
from ..data.store import StoredActivations
from ..quickstart import check_device
from .command import Answer, command
from .shown import frame_table
from .sources import ActivationSettings, SAESettings, read_fields

__all__ = ["probe", "write_table"]

_SHOWN = ["concept", "quantity", "kind", "lag", "lag_unit", "correlation", "low", "high", "q_value", "auroc", "frequency"]


class ProbeSettings(ActivationSettings, SAESettings):
    """Settings of ``probe``."""

    fields: Path = Field(
        description="Fields (N, *grid) and numbers (N,) of the same samples, by name: .safetensors, .npz, .pt, .nc or .zarr."
    )
    physics: list[str] | None = Field(
        None,
        description="Quantities: names of these fields, or what follows from them, as --physics vorticity --physics enstrophy "
        "from u and v. By default all the fields.",
    )
    lengths: tuple[float, ...] | None = Field(None, description="Lengths of the periodic box, for derivatives.")
    lags: tuple[float, ...] = Field(
        (0.0,),
        description="Compare codes at t with physics at t + lag, in units of time; of dates in days, hours, ...: the "
        "longest of which all steps are whole multiples, which the table names.",
    )
    block: int | None = Field(None, ge=1, description="Samples of a trajectory that make a block, for the intervals.")
    null: str | None = Field(None, description="For p-values: exchange or translate.")
    seed: int = Field(0, description="Of the draws.")
    batch_size: int = Field(16, ge=1, description="Samples at a time.")
    device: str = Field("cpu", description="cpu or cuda.")
    output: Path | None = Field(None, description="Table to write: .csv or .json.")


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
    fields, labels = read_fields(settings.fields)
    trajectory = labels.trajectory
    if isinstance(activations, StoredActivations):
        if activations.time is not None:
            labels = Labels(activations.time, time_units=activations.time_units)
        trajectory = trajectory if activations.trajectory is None else activations.trajectory
    table = run(
        settings.load(settings.device),
        activations,  # type: ignore[arg-type]  # a store is indexed like a tensor
        settings.physics or fields,
        fields=fields,
        calculus=None if settings.lengths is None else PeriodicBox(settings.lengths),
        trajectory=trajectory,
        time=labels.time if labels.dates is None else labels.dates,
        lags=settings.lags,
        block=settings.block,
        null=settings.null,
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
