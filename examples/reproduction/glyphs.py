"""Images of digits and letters, each moved, turned, scaled and sheared a little, and dictionaries trained on them alike: what
glyph_stability.py, glyph_shift.py and glyph_locality.py share."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from strongest import Strongest
from torch import Tensor

import neuralop_sae as ns

SIZE = 32  # points along a side
FINE = 4  # pixels along a side whose mean is a point
HEIGHT = 20  # size of the fonts in points: capitals are 15 high
# Of those that come with matplotlib.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "STIXGeneral",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
)
CHARACTERS = string.digits + string.ascii_letters
SHIFT, TURN, SCALE, SHEAR = 1.5, 10.0, 0.15, 0.15  # largest: points, degrees, share, share

MATCHINGS = {"k": "equal concepts on per image", "nonzeros": "equal nonzeros per image"}
NAMES = {"fno": "SAE-FNO", "cnn": "SAE-CNN", "mlp": "SAE-MLP"}
LEVELS = {"k": (4, 8), "nonzeros": (32, 64)}
COMPARED = {"k": 8, "nonzeros": 64}  # at which learning rates are tuned and models compared
RATES = {"fno": (1e-2, 3e-2, 1e-1), "cnn": (3e-2, 1e-1, 3e-1), "mlp": (1e-2, 3e-2, 1e-1)}
BATCH = 8


@cache
def glyph(font: str, character: str) -> Image.Image:
    """A character in the middle of a fine canvas, white on black."""
    side = SIZE * FINE
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    drawn = ImageFont.truetype(str(path), HEIGHT * FINE)
    left, top, right, bottom = drawn.getbbox(character)
    canvas = Image.new("L", (side, side))
    corner = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=drawn)
    return canvas


def images(n: int, seed: int, turn: float = 0.0) -> Tensor:
    """Images ``(n, 1, 32, 32)`` in 0 to 1 that depend on the seed only; `turn` turns each further, by degrees."""
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(n):
        master = glyph(FONTS[random.integers(len(FONTS))], CHARACTERS[random.integers(len(CHARACTERS))])
        right, down, turned, larger, sheared = random.uniform(-1, 1, 5)
        move = np.array([right, down]) * SHIFT * FINE
        canvas = mapped(master, move, TURN * turned + turn, 1 + SCALE * larger, SHEAR * sheared)
        drawn.append(np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(drawn))[:, None]


def mapped(master: Image.Image, move: Any, degrees: float, zoom: float, shear: float) -> Image.Image:
    """A canvas after shear, zoom, a turn about its middle and a move."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(zoom * turn @ np.array([[1.0, shear], [0.0, 1.0]]))  # PIL asks where each pixel comes from
    middle = np.array(master.size) / 2
    start = middle - back @ (middle + move)
    coefficients = (*back[0], start[0], *back[1], start[1])
    return master.transform(master.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Bed:
    """Images to train on, to choose learning rates by, and to test on."""

    n_train: int = 1200
    n_test: int = 200
    n_epochs: int = 2

    @cached_property
    def train(self) -> Tensor:
        """``(n_train, 1, 32, 32)``."""
        return images(self.n_train, 0)

    @cached_property
    def tune(self) -> Tensor:
        """``(n_test, 1, 32, 32)``."""
        return images(self.n_test, 1)

    @cached_property
    def test(self) -> Tensor:
        """``(n_test, 1, 32, 32)``."""
        return self.turned(0.0)

    def turned(self, degrees: float) -> Tensor:
        """The images to test on, turned further."""
        return images(self.n_test, 2, degrees)


def model(kind: str, matching: str, k: int, seed: int) -> ns.SAE:
    """An untrained dictionary with k concepts on per image, or k nonzeros.

    One channel makes a pointwise dictionary meaningless: it is a function of one number. It also makes ``skip="linear"`` a
    way to copy the image through a single concept; it is left out. FVE at 32 nonzeros on other images, one seed at rate 0.03,
    with 31, 23 and 15 modes: 0.856, 0.835, 0.763, and with the skip 0.857, 0.816, 0.786.
    """
    torch.manual_seed(seed)
    if kind == "mlp":
        return ns.SAEMLP(1, 128, (SIZE, SIZE), k=k)
    rules: dict[str, Any] = {
        "k": {"concept_rule": ns.TopK(k), "domain_rule": ns.Rectify()},
        "nonzeros": {"concept_rule": ns.All(), "domain_rule": Strongest(k)},
    }[matching]
    if kind == "cnn":
        return ns.SAECNN(1, 32, (9, 9), **rules)
    return ns.SAEFNO(1, 32, (31, 31), skip=None, **rules)


def started(bed: Bed, kind: str, matching: str, k: int, seed: int) -> ns.SAE:
    """A dictionary as training starts it, from some images."""
    sae, random = model(kind, matching, k, seed), torch.Generator().manual_seed(seed)
    sae.fit_normalization(bed.train.mean((0, 2, 3)), bed.train.std())
    sae.initialize_from(bed.train[torch.randperm(bed.n_train, generator=random)[:64]], random)
    return sae.eval()


@cache
def trained(bed: Bed, kind: str, matching: str, k: int, rate: float, seed: int) -> ns.SAE:
    """A dictionary, trained. The SAE-MLP trains for four times as many steps, which cost as much."""
    sae = model(kind, matching, k, seed)
    n_epochs = bed.n_epochs * (4 if kind == "mlp" else 1)
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=BATCH, learning_rate=rate, seed=seed)
    ns.train(sae, bed.train, config, progress=False)
    return sae


def tuned(bed: Bed, kind: str, matching: str) -> float:
    """The learning rate with the highest FVE on images that are kept for it."""

    def quality(rate: float) -> float:
        return ns.evaluate(trained(bed, kind, matching, COMPARED[matching], rate, 0), bed.tune)["fve"]

    return max(RATES[kind], key=quality)


def nonzeros(sae: ns.SAE, x: Tensor) -> float:
    """Numbers other than zero in the codes of an image, the mean; a code of SAE-MLP is one number."""
    codes = sae.encode(x)
    values = codes.values[..., :1, :1] if isinstance(sae, ns.SAEMLP) else codes.values
    return int((values != 0).sum()) / len(x)
