"""Moving pictures of rollouts: as the operator goes, as it goes with a concept edited, and what differs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checkpoint import write_atomically
from ..layers.basis import SpectralBasis
from .drawing import INK, ColorScale, aspect_of, color_bar, draw_field, pixels_of, plane, set_title, slice_note, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def animation(
    rollouts: Mapping[str, Tensor],
    *,
    path: str | Path,
    field: int | Callable[[Tensor], Tensor] = 0,
    basis: SpectralBasis | None = None,
    sample: int = 0,
    fps: int = 8,
    step: float = 1.0,
    unit: str = "steps",
    label: str = "",
) -> Path:
    """Write rollouts side by side as an animation, each but the first followed by its difference from the first.

    Fields share one colour scale over all steps, differences another that is centred at zero.

    Parameters
    ----------
    rollouts : mapping of str to Tensor
        From name to states ``(B, n_steps + 1, channels, *grid)``, as :func:`~neuralop_sae.rollout` makes them: the clean one
        first, then edited ones.
    path : path-like
        A file that ends in ``.gif``, or in ``.mp4``, which needs the program ffmpeg.
    field : int or callable
        The channel to draw, or a function from states ``(n, channels, *grid)`` to ``(n, *grid)``, such as a vorticity.
    basis : SpectralBasis, optional
        A model's ``basis``, which knows the domain: on a sphere maps of the globe are drawn. By default a box.
    sample : int
        Which trajectory.
    fps : int
        Steps per second.
    step, unit : float, str
        How long a step is, and in what unit.
    label : str
        What the field is, with its unit, at the colour bars.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If rollouts do not fit each other, hold a NaN or infinity, or the file ends in another way; before anything is drawn.
    RuntimeError
        If ffmpeg is asked for and not there.
    """
    target = Path(path)
    writer = _writer(target, fps)
    fields = _fields(rollouts, field, sample)
    figure, redraw = _panels(fields, basis, lambda at: f"t = {at * step:g} {unit}", label)
    n_frames = len(next(iter(fields.values())))

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / target.name
        with writer.saving(figure, str(drawn), _DPI):
            for at in range(n_frames):
                redraw(at)
                writer.grab_frame()
        write_atomically(target, lambda temporary: shutil.copyfile(drawn, temporary))
    return target


def _writer(path: Path, fps: int) -> Any:
    from matplotlib.animation import FFMpegWriter

    from .gif import GifWriter

    if fps < 1:
        raise ValueError(f"fps is the number of steps per second, at least 1; got {fps!r}")
    if path.suffix == ".gif":
        return GifWriter(fps=fps)
    if path.suffix != ".mp4":
        raise ValueError(f"an animation is a .gif or an .mp4, got {path.name!r}")
    if not FFMpegWriter.isAvailable():
        raise RuntimeError(f"{path.name} needs the program ffmpeg, which is not on the PATH: install it, or write a .gif")
    return FFMpegWriter(fps=fps, extra_args=["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"])


def _fields(rollouts: Mapping[str, Tensor], field: int | Callable[[Tensor], Tensor], sample: int) -> dict[str, Tensor]:
    """What is drawn, ``(n_frames, *grid)`` by name."""
    if not rollouts:
        raise ValueError("no rollouts to draw: pass at least one {name: states}")
    shapes = {name: tuple(states.shape) for name, states in rollouts.items()}
    first = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(first) < 4:
        raise ValueError(f"rollouts are (B, n_steps + 1, channels, *grid), all of one shape; got {shapes}")
    if not 0 <= sample < first[0]:
        raise ValueError(f"sample={sample} is none of the {first[0]} trajectories")
    if isinstance(field, int) and not 0 <= field < first[2]:
        raise ValueError(f"field={field} is none of the {first[2]} channels")
    chosen = {name: states[sample].detach().cpu() for name, states in rollouts.items()}
    fields = {name: states[:, field] if isinstance(field, int) else field(states) for name, states in chosen.items()}
    for name, values in fields.items():
        if values.shape != (first[1], *first[3:]):
            raise ValueError(f"field gives (n, *grid) = {(first[1], *first[3:])}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"rollout {name!r} holds a NaN or infinity: cut it before the step where it blows up")
    return fields


def _panels(
    fields: Mapping[str, Tensor], basis: SpectralBasis | None, time: Callable[[int], str], label: str
) -> tuple[Figure, Callable[[int], None]]:
    """A figure with a panel for each field and difference, and what draws a step in it."""
    (clean, reference), *edited = fields.items()
    differences = {f"{name} \u2212 {clean}": values - reference for name, values in edited}
    shared = ColorScale.of(*fields.values())
    peak = max((float(values.abs().max()) for values in differences.values()), default=0.0) or 1.0
    panels = [(clean, reference, shared)]
    for (name, values), (title, difference) in zip(edited, differences.items(), strict=True):
        panels += [(name, values, shared), (title, difference, ColorScale("RdBu_r", -peak, peak))]
    n_dim = reference.ndim - 1
    figure, axes = subplots(1, len(panels), 2.9, 2.7, aspect_of(reference.shape[1:], basis))
    for ax, (title, values, scale) in zip(axes[0], panels, strict=True):
        image = draw_field(ax, values[0], scale, basis)
        set_title(ax, title, slice_note(n_dim))
        color_bar(figure, image, ax, label)
    clock = figure.suptitle(time(0), fontsize=9, color=INK)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or every step would be laid out again, and panels jump

    def redraw(at: int) -> None:
        clock.set_text(time(at))
        for ax, (_, values, _) in zip(axes[0], panels, strict=True):
            shown = plane(values[at]).double()
            if shown.ndim == 1:
                ax.lines[0].set_ydata(shown.numpy())
            else:
                ax.images[0].set_data(pixels_of(shown, basis).numpy())

    return figure, redraw
