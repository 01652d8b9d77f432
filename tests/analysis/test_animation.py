"""Animations of rollouts: as many frames as steps, each showing its own fields, and what is refused."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from neuralop_sae import SphericalBasis
from neuralop_sae.analysis import mollweide
from neuralop_sae.analysis.animation import _panels, animation


def states(*grid: int) -> Tensor:
    return torch.randn(2, 3, 2, *grid, generator=torch.Generator().manual_seed(0))


def test_a_frame_for_each_state(tmp_path: Path) -> None:
    clean = states(4, 5)
    path = animation({"clean": clean, "edited": 2 * clean}, path=tmp_path / "deep" / "a.gif", fps=5, field=1)
    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.info["duration"] == 200
        frames = []
        for at in range(3):
            image.seek(at)
            frames.append(np.asarray(image.convert("RGB")))
    assert all((a != b).any() for a, b in pairwise(frames))
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]


def test_a_color_is_the_same_in_all_frames(tmp_path: Path) -> None:
    noise = torch.randn(1, 20, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    clean = torch.linspace(0.01, 1, 20).view(-1, 1, 1, 1) * noise
    figure, _ = _panels({"clean": clean[0, :, 0]}, None, str, "w")
    with Image.open(animation({"clean": clean}, path=tmp_path / "a.gif", label="w")) as image:
        width, height = image.size
        bar = figure.axes[1].get_position()
        x, y = round((bar.x0 + bar.x1) / 2 * width), round((1 - bar.y1) * height) + 4
        frames = [np.asarray(image.convert("RGB")) for at in range(20) if image.seek(at) is None]
    tops = {tuple(frame[y, x].tolist()) for frame in frames}
    assert len(tops) == 1
    expected = matplotlib.colormaps["RdBu_r"](1 - 4 / (bar.height * height))
    np.testing.assert_allclose(tops.pop(), 255 * np.array(expected)[:3], atol=8)
    assert all((frame[0, 0] == 255).all() for frame in frames), "the page is not white"


@pytest.mark.parametrize("kind", ["box", "globe", "line"])
def test_panels_show_fields_and_their_difference(kind: str) -> None:
    basis = SphericalBasis((4, 8)) if kind == "globe" else None
    clean = states(7) if kind == "line" else states(9, 16)
    fields = {"clean": clean[0, :, 0], "edited": 2 * clean[0, :, 0]}
    figure, redraw = _panels(fields, basis, lambda at: f"t = {at}", "w")
    redraw(2)
    expected = [fields["clean"][2], fields["edited"][2], fields["clean"][2]]
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["clean", "edited", "edited \u2212 clean"]
    assert panels[0].get_ylabel() == ("w" if kind == "line" else "")
    for ax, values in zip(panels, expected, strict=True):
        if kind == "line":
            np.testing.assert_allclose(ax.lines[0].get_ydata(), values.numpy(), rtol=1e-6)
            continue
        if basis is not None:
            values = mollweide.pixels(values.double(), basis.colatitudes(9))
        drawn = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
        np.testing.assert_allclose(drawn, values.numpy(), rtol=1e-6)
    if kind != "line":
        assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
        low, high = panels[2].images[0].get_clim()
        assert -low == high == pytest.approx(float(fields["clean"].abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "a.png"}, "a .gif or an .mp4"),
        ({"fps": 0}, "at least 1"),
        ({"rollouts": {}}, "no rollouts"),
        ({"rollouts": {"a": states(4, 4), "b": states(4, 5)}}, "all of one shape"),
        ({"sample": 2}, "none of the 2 trajectories"),
        ({"field": 2}, "none of the 2 channels"),
        ({"field": lambda x: x}, "field gives"),
        ({"rollouts": {"a": torch.full((1, 2, 1, 4, 4), torch.nan)}}, "'a' holds a NaN"),
    ],
)
def test_refuses_what_cannot_be_drawn(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"rollouts": {"a": states(4, 4)}, **change, "path": tmp_path / change.get("path", "a.gif")}
    with pytest.raises(ValueError, match=message):
        animation(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg: no .mp4 was written")
def test_films(tmp_path: Path) -> None:
    path = animation({"clean": states(4, 4)}, path=tmp_path / "a.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"


def test_a_film_without_ffmpeg_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"ffmpeg, which is not on the PATH: install it, or write a \.gif"):
        animation({"clean": states(4, 4)}, path=tmp_path / "a.mp4")
