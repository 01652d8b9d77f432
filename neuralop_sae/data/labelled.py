"""Data with coordinates, by xarray: fields for an operator out of it, codes into it.

Activations of a store go into it by `StoredActivations.to_xarray`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..codes import ConceptCodes
from .coordinates import LATITUDES, LONGITUDES, TIMES, grid_of
from .extras import import_extra
from .indexed import IndexedActivations
from .labels import Labels
from .place import Place

if TYPE_CHECKING:
    import xarray

__all__ = ["LabelledFields", "codes_to_xarray", "from_xarray"]


class LabelledFields(Dataset[dict[str, Tensor]]):
    """Variables of an xarray Dataset as the input of an operator, from `from_xarray`: a data set whose samples are mappings
    ``{"x": (channels, *grid)}``, read when they are asked for.

    Attributes
    ----------
    channels : list of str
        What each channel is, such as ``"temperature"`` or ``"temperature[level=500]"``.
    grid : tuple of int
        Points of the grid.
    kind : {"equiangular", "legendre-gauss", "lobatto", "midpoint", "box"}
        What the grid is: latitudes with both poles, Gaussian, Lobatto, or in the middle of equal bands; "box" where the axes
        are no latitudes and longitudes.
    basis : SpectralBasis or None
        The basis of the grid, with a single mode; None on the grid "midpoint", which the transforms of the sphere do not know.
    lengths : tuple of float or None
        Lengths of the box, one period being the number of points times their distance; None on the sphere, and without
        coordinates.
    coordinates : dict of str to numpy.ndarray
        Those of the axes that have numbers, in order, as ``lat`` and ``lon``, or as ``z``, ``y`` and ``x``.
    time : numpy.ndarray or None
        ``(N,)``: the time of each sample, in the type of the Dataset.
    trajectory : Tensor or None
        ``(N,)``: the place of each sample along the dimension that counts trajectories.
    mean, std : Tensor or None
        ``(channels, *1)`` float32, where normalisation was asked for.
    """

    def __init__(
        self,
        variables: Mapping[str, xarray.DataArray],
        sample_dims: tuple[str, ...],
        grid_dims: tuple[str, ...],
        time_dim: str | None = None,
    ) -> None:
        self._variables, self._sample_dims, self._grid_dims = dict(variables), sample_dims, grid_dims
        sizes: dict[str, int] = {}
        for variable in self._variables.values():
            sizes |= {str(name): size for name, size in variable.sizes.items()}
        self._sample_shape = tuple(sizes[name] for name in sample_dims)
        self.grid = tuple(sizes[name] for name in grid_dims)
        self.channels = [name for key, variable in self._variables.items() for name in self._names(key, variable)]
        points = {name: np.asarray(v.coords[name]) for v in variables.values() for name in grid_dims if name in v.coords}
        self.kind, self.basis, self.lengths = grid_of(points, grid_dims, self.grid)
        names = Place().names(len(self.grid)) if self.kind == "box" else ("lat", "lon")
        self.coordinates = {
            ours: points[name]
            for ours, name in zip(names, grid_dims, strict=True)
            if name in points and np.issubdtype(points[name].dtype, np.number)
        }
        places = dict(zip(sample_dims, np.unravel_index(np.arange(len(self)), self._sample_shape or (1,)), strict=False))
        dates = next((np.asarray(v.coords[time_dim]) for v in variables.values() if time_dim in v.coords), None)
        self.time: np.ndarray | None = None
        if time_dim in places:
            self.time = places[time_dim] if dates is None else dates[places[time_dim]]
        other = [name for name in sample_dims if name != time_dim]
        self.trajectory = torch.from_numpy(places[other[0]]) if other else None
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    def __len__(self) -> int:
        return int(np.prod(self._sample_shape, dtype=int))

    def __repr__(self) -> str:
        return f"LabelledFields({len(self)} samples of {', '.join(self.channels)} on {self.grid}, {self.kind})"

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} is out of range for {len(self)} samples")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several samples, each variable being read once."""
        return [{"x": field} for field in self.tensor(indices)]

    def tensor(self, indices: Sequence[int] | None = None) -> Tensor:
        """Fields ``(n, channels, *grid)`` in float32; all of them by default.

        Raises
        ------
        ValueError
            If one is missing (NaN).
        """
        numbers = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=int)
        fields = torch.from_numpy(np.concatenate([self._read(v, numbers) for v in self._variables.values()], axis=1))
        bad = (~fields.flatten(2).isfinite().all(2)).nonzero().tolist()
        if bad:
            sample, channel = bad[0]
            raise ValueError(
                f"{self.channels[channel]} has missing values in sample {numbers[sample]}: an operator needs one at every "
                "point; fill them first, as with dataset.fillna"
            )
        return fields if self.mean is None or self.std is None else (fields - self.mean) / self.std

    def _names(self, key: str, variable: xarray.DataArray) -> list[str]:
        extra = self._extra_dims(variable)
        values = [variable[name].values if name in variable.coords else np.arange(variable.sizes[name]) for name in extra]
        named = [", ".join(f"{name}={value}" for name, value in zip(extra, each, strict=True)) for each in product(*values)]
        return [f"{key}[{name}]" for name in named] if extra else [key]

    def _extra_dims(self, variable: xarray.DataArray) -> list[str]:
        return [str(name) for name in variable.dims if name not in (*self._sample_dims, *self._grid_dims)]

    def _read(self, variable: xarray.DataArray, numbers: np.ndarray) -> np.ndarray:
        """Samples of a variable, ``(n, its channels, *grid)``; one without the dimensions of samples is the same for all."""
        xr = import_extra("xarray")
        places = np.unravel_index(numbers, self._sample_shape or (1,))
        chosen = {
            name: xr.DataArray(place, dims="sample")
            for name, place in zip(self._sample_dims, places, strict=False)
            if name in variable.dims
        }
        read = variable.isel(chosen)
        if not chosen:
            read = read.expand_dims(sample=len(numbers))
        values = read.transpose("sample", *self._extra_dims(variable), *self._grid_dims).values
        return np.ascontiguousarray(values.reshape(len(numbers), -1, *self.grid), dtype=np.float32)

    def normalize(self, batch_size: int = 32) -> None:
        """Find the mean and the standard deviation of each channel, over samples and domain by area, and divide by them from
        now on; ValueError if a channel is constant."""
        self.mean = self.std = None
        weights = self._weights()
        first = torch.zeros(len(self.channels), dtype=torch.float64)
        second, reference = first.clone(), self.tensor([0]).double().mean((0, *range(2, 2 + len(self.grid))))
        shift = reference.view(-1, *(1,) * len(self.grid))  # variances as differences of squares need a small mean
        for indices in torch.arange(len(self)).split(batch_size):
            fields = self.tensor(indices.tolist()).double() - shift
            first += (fields * weights).flatten(2).sum((0, 2))
            second += (fields.square() * weights).flatten(2).sum((0, 2))
        mean = first / len(self)
        variance = second / len(self) - mean.square()
        constant = [name for name, value in zip(self.channels, variance.tolist(), strict=True) if value <= 0]
        if constant:
            raise ValueError(f"{', '.join(constant)} is constant: leave it out, or do not normalise")
        self.mean, self.std = ((m.view_as(shift)).float() for m in (mean + reference, variance.sqrt()))

    def _weights(self) -> Tensor:
        if self.basis is not None:
            return self.basis.quadrature(self.grid, like=torch.zeros((), dtype=torch.float64))
        edges = torch.linspace(0, torch.pi, self.grid[0] + 1, dtype=torch.float64).cos()  # equal bands of latitude
        return ((edges[:-1] - edges[1:]) / (2 * self.grid[1])).view(-1, 1)


def from_xarray(
    dataset: xarray.Dataset | xarray.DataArray,
    variables: str | Sequence[str] | None = None,
    *,
    time_dim: str | None = None,
    trajectory: str | None = None,
    grid_dims: Sequence[str] | None = None,
    normalize: bool = False,
) -> LabelledFields:
    """Variables of an xarray Dataset, from NetCDF, Zarr or memory, as the fields that an operator takes.

    Nothing is loaded: samples are read when they are asked for, so that ``xarray.open_dataset("era5.nc")`` may be larger than
    memory. The result is an input of `capture`, `stream` and `ActivationStore.write`, whose activations know its times,
    trajectories and coordinates.

    Parameters
    ----------
    dataset : xarray.Dataset or DataArray
        Has the variables, or is the only one, on a grid of latitudes and longitudes, or of a periodic box. The dimension of
        time counts samples; variables without it are the same at all times. Other dimensions, such as levels, become channels.
    variables : str or sequence of str, optional
        Which, in the order of the channels; all by default.
    time_dim : str, optional
        Dimension of time; by default ``time`` or, as in ERA5, ``valid_time``.
    trajectory : str, optional
        Dimension that counts trajectories, such as ``"member"``.
    grid_dims : sequence of str, optional
        Dimensions of the grid in order; by default latitude and longitude, or those of ``z, y, x`` that there are.
    normalize : bool
        Whether to subtract the mean of each channel and divide by its standard deviation, both by area; they are kept as
        ``mean`` and ``std``.

    Returns
    -------
    LabelledFields
        The fields, with their names and coordinates.

    Raises
    ------
    TypeError
        If the data are neither a Dataset nor a DataArray.
    ValueError
        If a variable or a dimension is missing; if latitudes run from south to north (the transforms on the sphere begin at
        the north pole), or are on no grid known; if longitudes do not go round once, eastward and evenly.
    ImportError
        If xarray is not installed.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> temperature = xr.DataArray(np.zeros((4, 9, 16)), dims=("time", "lat", "lon"))
    >>> temperature = temperature.assign_coords(lat=np.linspace(90, -90, 9), lon=np.arange(16) * 22.5)
    >>> fields = from_xarray(xr.Dataset({"temperature": temperature}))
    >>> fields
    LabelledFields(4 samples of temperature on (9, 16), equiangular)
    >>> fields[3]["x"].shape
    torch.Size([1, 9, 16])
    """
    xr = import_extra("xarray")
    if isinstance(dataset, xr.DataArray):
        dataset = dataset.to_dataset(name=dataset.name or "field")
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"from_xarray takes a Dataset or a DataArray of xarray, not {type(dataset).__name__}")
    chosen_names = [variables] if isinstance(variables, str) else variables
    names = [str(name) for name in dataset.data_vars] if chosen_names is None else list(chosen_names)
    missing = [name for name in names if name not in dataset.data_vars]
    if missing or not names:
        known = ", ".join(map(str, dataset.data_vars)) or "none"
        raise ValueError(f"the dataset has no variables {', '.join(missing) or 'at all'}; it has: {known}")
    found = {str(name) for name in dataset.dims}
    chosen = _default_grid_dims(found) if grid_dims is None else tuple(grid_dims)
    named = [name for name in (trajectory, time_dim) if name is not None]
    unknown = [name for name in (*chosen, *named) if name not in found]
    if unknown or not chosen:
        raise ValueError(
            f"the dimensions {', '.join(unknown) or 'of the grid'} are not among those of the dataset: "
            f"{', '.join(sorted(found))}; name the grid's, as in grid_dims=('lat', 'lon')"
        )
    for name in names:
        if not set(chosen) <= set(dataset[name].dims):
            raise ValueError(
                f"{name} has the dimensions {tuple(dataset[name].dims)}, not all of the grid's {chosen}: leave it out, or "
                "spread it over the grid first"
            )
    time_dim = time_dim or next((name for name in TIMES if name in found), None)
    samples = tuple(name for name in (trajectory, time_dim) if name is not None)
    fields = LabelledFields({name: dataset[name] for name in names}, samples, chosen, time_dim)
    if normalize:
        fields.normalize()
    return fields


def codes_to_xarray(
    codes: ConceptCodes,
    concepts: Sequence[int] | None = None,
    *,
    like: LabelledFields | IndexedActivations | None = None,
    lengths: Sequence[float] | None = None,
    time: Any = None,
    trajectory: Any = None,
) -> xarray.Dataset:
    """Codes of concepts as an xarray Dataset, with the coordinates of their grid.

    Parameters
    ----------
    codes : ConceptCodes
        The codes.
    concepts : sequence of int, optional
        Which: the variable ``code (sample, concept, *grid)`` is then zero where one is off. By default all, without those that
        are off: ``code (row, *grid)`` and its ``norm (row)``, with the sample and the concept of a row as coordinates.
    like : LabelledFields, StoredActivations or ActivationStream, optional
        The samples that the codes are of, from which lengths, time, trajectory and coordinates are taken.
    lengths : sequence of float, optional
        Lengths of the periodic box. Latitudes are known; longitudes begin at 0, if `like` says nothing else.
    time, trajectory : array, optional
        ``(n_samples,)`` per sample; dates are kept as such.

    Returns
    -------
    xarray.Dataset
        In units of the normalised activations.

    Raises
    ------
    ValueError
        If a concept is out of range, or labels do not fit the samples.
    """
    xr = import_extra("xarray")
    codes = codes.detach().cpu()
    labels = _labels(like, time, trajectory, codes.n_samples)
    points = {} if like is None else {name: tuple(map(float, values)) for name, values in like.coordinates.items()}
    lengths = lengths or (None if like is None else like.lengths)
    place = Place(codes.basis, None if lengths is None else tuple(lengths), points)
    units = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
    axes = place.coordinates(codes.grid)
    coords: dict[str, Any] = {name: (name, values, units.get(name, {})) for name, values in axes.items()}
    grid = place.names(len(codes.grid))
    if concepts is not None:
        values = torch.stack([codes.of(concept) for concept in concepts], 1).numpy()
        coords |= {name: ("sample", *label) for name, label in labels.items()} | {"concept": list(concepts)}
        return xr.Dataset({"code": (("sample", "concept", *grid), values)}, coords, {"n_concepts": codes.n_concepts})
    sample = codes.sample.numpy()
    coords |= {"sample": ("row", sample), "concept": ("row", codes.concept.numpy())}
    coords |= {name: ("row", label[sample], described) for name, (label, described) in labels.items()}
    data = {"code": (("row", *grid), codes.values.numpy()), "norm": ("row", codes.norms().numpy())}
    return xr.Dataset(data, coords, {"n_samples": codes.n_samples, "n_concepts": codes.n_concepts})


def _default_grid_dims(found: set[str]) -> tuple[str, ...]:
    sphere = [[name for name in names if name in found] for names in (LATITUDES, LONGITUDES)]
    if all(sphere):
        return sphere[0][0], sphere[1][0]
    return tuple(name for name in ("z", "y", "x") if name in found)


def _labels(
    like: LabelledFields | IndexedActivations | None, time: Any, trajectory: Any, n_samples: int
) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Time and trajectory of samples with their attributes: those given, else those of `like`."""
    described = {}
    if time is None and isinstance(like, LabelledFields):
        time = like.time
    elif time is None and isinstance(like, IndexedActivations):
        time = like.time if like.dates is None else like.dates
        known = {"units": like.time_units, "calendar": like.calendar} if like.dates is None else {}
        described = {name: value for name, value in known.items() if value}
    if trajectory is None and like is not None:
        trajectory = like.trajectory
    found = Labels.of(time, trajectory, n_samples).tensors()
    return {name: (np.asarray(time), described) if name == "time" else (tensor.numpy(), {}) for name, tensor in found.items()}
