"""Where the points of a grid are, and what its axes are called, in the words of CF conventions and xarray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..layers.basis import SpectralBasis
from ..layers.spherical import SphericalBasis

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """Where activations are: on the sphere, or in a periodic box.

    Parameters
    ----------
    basis : SpectralBasis, optional
        Of which the kind and the grid count, not the modes.
    lengths : tuple of float, optional
        Lengths of a periodic box.
    points : mapping of str to tuple of float
        Coordinates of the grid of the inputs, by axis, where they are known. Another grid of the same domain begins where this
        one does.

    Examples
    --------
    >>> Place(lengths=(1.0, 4.0), points={"y": (2.0, 2.5), "x": (0.0, 2.0)}).coordinates((2, 4))
    {'y': array([2. , 2.5]), 'x': array([0., 1., 2., 3.])}
    """

    basis: SpectralBasis | None = None
    lengths: tuple[float, ...] | None = None
    points: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def names(self, n_axes: int) -> tuple[str, ...]:
        """Names of the axes of a grid: ``lat, lon`` on the sphere, else ``x``, ``y, x`` or ``z, y, x``; before those of the
        basis ``d1, ...``, such as the time steps that an operator runs through.

        Examples
        --------
        >>> Place().names(1), Place().names(4), Place(SphericalBasis((1, 2))).names(3)
        (('x',), ('d1', 'z', 'y', 'x'), ('d1', 'lat', 'lon'))
        """
        on_sphere = isinstance(self.basis, SphericalBasis) or "lat" in self.points
        names: tuple[str, ...] = ("lat", "lon") if on_sphere else ("z", "y", "x")
        names = names[-n_axes if self.basis is None else -self.basis.n_dim :]
        return (*(f"d{i + 1}" for i in range(n_axes - len(names))), *names)

    def coordinates(self, grid: Sequence[int]) -> dict[str, np.ndarray]:
        """Coordinates of the axes of a grid where they are known.

        Those of the inputs on their grid. On another, latitudes and longitudes in degrees; in a periodic box of lengths L_j
        the points ``i L_j / N_j`` from the first one; nothing where lengths are not given.

        Raises
        ------
        ValueError
            If there are not as many lengths as axes of the box.
        """
        names = [name for name in self.names(len(grid)) if not name.startswith("d")]
        if self.lengths is not None and "lat" not in names and len(self.lengths) != len(names):
            raise ValueError(f"lengths has {len(self.lengths)} numbers for the axes {', '.join(names)}: give one for each")
        found = {}
        for axis, (name, size) in enumerate(zip(names, grid[-len(names) :], strict=True)):
            known = self.points.get(name, ())
            values = np.array(known) if len(known) == size else self._computed(axis, name, size)
            if values is not None:
                found[name] = values
        return found

    def _computed(self, axis: int, name: str, size: int) -> np.ndarray | None:
        first = self.points.get(name, (0.0,))[0]
        if name == "lat":
            basis = self.basis
            return 90 - np.rad2deg(basis.colatitudes(size).numpy()) if isinstance(basis, SphericalBasis) else None
        if name == "lon":
            return first + np.arange(size) * (360 / size)
        return None if self.lengths is None else first + np.arange(size) * (self.lengths[axis] / size)
