"""Animations as GIFs in which a colour is the same in all frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter
from matplotlib.figure import Figure
from PIL import Image

_FRAMES_FOR_PALETTE = 16


class GifWriter(AbstractMovieWriter):
    """Writes a GIF whose frames share one palette, without dithering: matplotlib's own writer leaves Pillow to choose colours
    for each frame, and equal values then look different from step to step."""

    def setup(self, fig: Figure, outfile: str | Path, dpi: float | None = None) -> None:
        """Begin a file."""
        super().setup(fig, outfile, dpi)
        self._frames: list[Image.Image] = []

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        """Add the figure as it is now."""
        buffer = io.BytesIO()
        self.fig.savefig(buffer, **{**savefig_kwargs, "format": "png", "dpi": self.dpi})
        with Image.open(buffer) as image:
            self._frames.append(image.convert("RGB"))

    def finish(self) -> None:
        """Choose the palette from frames evenly spread over the animation, and write all of them in it."""
        n, (width, height) = len(self._frames), self._frames[0].size
        chosen = self._frames[:: -(-n // _FRAMES_FOR_PALETTE)]
        together = Image.new("RGB", (width, height * len(chosen)))
        for place, frame in enumerate(chosen):
            together.paste(frame, (0, height * place))
        palette = together.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames]
        # Colours of a palette are a few steps from those they stand for, which shows where a page is not quite white.
        colors = np.array(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)
        colors[np.asarray(frames[0])[0, 0]] = np.asarray(self._frames[0])[0, 0]
        for frame in frames:
            frame.putpalette(colors.tobytes())
        first, *others = frames
        duration = int(1000 / self.fps)
        first.save(self.outfile, save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
