"""Pictures of the report where values are missing."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from neuralop_sae import FourierBasis, SphericalBasis
from neuralop_sae.analysis.drawing import ColorScale
from neuralop_sae.analysis.pictures import contour_paths, png


def test_pixels_without_a_finite_value_are_transparent() -> None:
    field = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.5, -torch.inf]])
    uri = png(field, ColorScale.of(field), None, 8)
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))[..., 3]
    assert (alpha > 0).tolist() == field.isfinite().tolist()


@pytest.mark.parametrize(("basis", "shape"), [(FourierBasis((3, 3)), (9, 12)), (SphericalBasis((4, 8)), (9, 16))])
def test_fields_with_holes_have_contours(basis: FourierBasis | SphericalBasis, shape: tuple[int, int]) -> None:
    field = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    field[0, 2:4], field[4, 5] = torch.nan, torch.inf
    paths, _ = contour_paths([field, torch.full(shape, torch.nan)], basis, 10_000)
    assert paths[0].count("M") > 2
    assert paths[1] == ""
