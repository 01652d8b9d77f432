"""``neuralop-sae sites``: where an operator can be read and changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import nn

from ..attach.capture import capture
from ..attach.rules import original_module
from ..attach.sites import find_sites
from ..data.samples import batches_of
from .command import Answer, command
from .shown import frame_table
from .sources import InputSettings

__all__ = ["sites"]


class SitesSettings(InputSettings):
    """Settings of ``sites``: `inputs` gives the shapes."""


@command(SitesSettings)
def sites(settings: SitesSettings) -> Answer:
    """List the sites of an operator: the places where activations can be read and changed.

    With --inputs the first sample runs through the operator, and the shape of its activations at each site is told.

    neuralop-sae sites --model checkpoints/fno --inputs test.safetensors
    """
    model = settings.operator()
    plain = original_module(model)
    found = find_sites(model)
    frame = found.to_frame()
    frame.insert(1, "kind", [type(plain.get_submodule(site.path)).__name__ for site in found])
    if settings.inputs is not None:
        first, processor = next(batches_of(settings.read_inputs(), 1)), settings.processor()
        frame = frame.join(pd.DataFrame([_shape(model, site, first, processor) for site in found]))
    name = type(plain).__name__
    return Answer({"model": name, "sites": frame.to_dict("records")}, [frame_table(f"Sites of {name}", frame)])


def _shape(model: nn.Module, site: str, batch: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    try:
        shape = capture(model, site, [dict(batch)], data_processor=processor, max_samples=1).shape
    except RuntimeError as error:  # a module that the forward pass does not call, or calls several times
        return {"channels": None, "grid": None, "note": str(error)}
    return {"channels": shape[1], "grid": list(shape[2:]), "note": ""}
