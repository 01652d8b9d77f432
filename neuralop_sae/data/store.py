"""Activations on disk: chunked, compressed, with checksums, for training on more than memory holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from .. import notebook
from ..layers.basis import SpectralBasis
from .extras import import_extra
from .indexed import IndexedActivations
from .manifest import Manifest, StoredArray, crc32, damaged
from .place import Place
from .writing import write_store

if TYPE_CHECKING:
    import xarray

__all__ = ["ActivationStore", "StoredActivations"]


class ActivationStore:
    """Activations of one or several sites of an operator in a folder, from `ActivationStore.write`.

    The folder is a Zarr store (format 3) that other programs read too. Every site on every grid is a group with the arrays
    ``activations (sample, channel, *grid)``, ``time`` and ``trajectory``, and the coordinates of the grid where they are
    known; ``manifest.json`` says what was asked for, and how far the writing came.

    Parameters
    ----------
    path : path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If its manifest or the description of an array is damaged or of a newer schema.
    ImportError
        If zarr is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from neuralop.models import FNO
    >>> model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8)
    >>> folder = tempfile.TemporaryDirectory()
    >>> inputs, sites = torch.randn(5, 1, 8, 8), ["fno_blocks.1", "fno_blocks.2"]
    >>> store = ActivationStore.write(f"{folder.name}/acts.zarr", model, sites, inputs)
    >>> store["fno_blocks.2"][torch.tensor([4, 0])].shape
    torch.Size([2, 8, 8, 8])
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        zarr = import_extra("zarr")
        self._arrays = {}
        for key, entry in self.manifest.arrays.items():
            try:
                self._arrays[key] = zarr.open_array(self.path, path=f"{key}/activations", mode="r")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise damaged(self.path, key, error) from error
            shape = self._arrays[key].shape
            if shape[0] < entry.n_samples or shape[1:] != entry.shape:
                wanted = (entry.n_samples, *entry.shape)
                raise damaged(self.path, key, f"shape {shape}, in the manifest {wanted}")

    @classmethod
    def write(
        cls,
        path: str | Path,
        model: nn.Module,
        sites: str | Sequence[str],
        inputs: Any,
        *,
        batch_size: int = 32,
        dtype: str = "float32",
        padded: bool = False,
        device: torch.device | str | None = None,
        data_processor: Any = None,
        shared: Collection[str] = (),
        time: Any = None,
        trajectory: Any = None,
        basis: SpectralBasis | None = None,
        lengths: Sequence[float] | None = None,
        units: Mapping[str, str] | None = None,
        shard_size: int | None = None,
        progress: bool = False,
    ) -> Self:
        r"""Run a model on inputs once and keep the activations at all sites, as `capture` gives them.

        The work is resumable: the same call, after a crash or a kill, goes on where the last shard ended, and leaves the same
        bytes as a call that was never interrupted. It reads the inputs again from the start, to be sure that they are the
        same, but runs the model on what is missing only. A call for a store that is complete checks the inputs, and opens it.

        Parameters
        ----------
        path : path
            The folder; made if missing.
        model : nn.Module
            The operator.
        sites : str or sequence of str
            Names from `find_sites`.
        inputs : Tensor, mapping, Dataset or iterable
            What `capture` takes, a data set of torch or neuralop (Darcy, Navier-Stokes, the Well, with its data processor), or
            a mapping of resolutions (numbers or tuples) to such inputs, as neuralop's test loaders are. Batches may differ in
            their grid: each grid gets an array of its own. They must come in the same order each time: no shuffling loader.
        batch_size : int
            Samples per forward pass, where inputs are not batches already.
        dtype : {"float32", "float16", "float64"}
            What is stored. Half precision is given back as float32.
        padded, device, data_processor, shared, progress
            As in `capture`.
        time : array, optional
            ``(N,)`` numbers or dates (``datetime64``, or cftime's for other calendars), one for each sample in order. By
            default those of `from_xarray`, where the inputs come from it; so for trajectories, basis and lengths.
        trajectory : array, optional
            ``(N,)`` whole numbers: which run of a simulation, or which member, each sample belongs to.
        basis : SpectralBasis, optional
            Gives quadrature and coordinates; only its kind and grid count, not its modes. By default a Fourier basis, or
            spherical harmonics on an equiangular grid, as the operator's convolutions say.
        lengths : sequence of float, optional
            Lengths of the periodic box, one per axis of the grid.
        units : mapping of str to str, optional
            Units of ``"activations"``, ``"lengths"`` and ``"time"``.
        shard_size : int, optional
            Samples per file; by default as many as fill 32 MB. Within a file each sample is compressed for itself.
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        ActivationStore
            The store, open.

        Raises
        ------
        ValueError
            If the folder holds something else, or activations of another model, other inputs or other settings; if a site is
            unknown; if activations are not finite, or beyond the range of `dtype`; if labels do not fit the samples.
        TypeError
            If the inputs are of another type.

        Notes
        -----
        Memory holds a shard and a batch of every site, and one shard more while it is compressed. Fields
        are compressed without loss: bits shuffled by significance, then Zstandard.
        """
        names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
        write_store(
            Path(path),
            model,
            names,
            inputs,
            batch_size=batch_size,
            dtype=dtype,
            padded=padded,
            device=device,
            data_processor=data_processor,
            shared=shared,
            labels=(time, trajectory),
            basis=basis,
            lengths=lengths,
            units=dict(units or {}),
            shard_size=shard_size,
            progress=progress,
        )
        return cls(path)

    @property
    def sites(self) -> list[str]:
        """Names of the sites."""
        return list(self.manifest.sites)

    @property
    def grids(self) -> dict[str, list[tuple[int, ...]]]:
        """The grids on which each site has activations."""
        found: dict[str, list[tuple[int, ...]]] = {site: [] for site in self.sites}
        for entry in self.manifest.arrays.values():
            found[entry.site].append(entry.shape[1:])
        return found

    @property
    def complete(self) -> bool:
        """Whether the writing came to its end."""
        return self.manifest.complete

    def __repr__(self) -> str:
        state = "" if self.complete else f", incomplete after {self.manifest.n_samples} inputs"
        grids = "; ".join(
            f"{entry.site}: {entry.n_samples} x {entry.shape[0]} channels on {'x'.join(map(str, entry.shape[1:]))}"
            for entry in self.manifest.arrays.values()
        )
        return f"ActivationStore({str(self.path)!r}: {grids or 'nothing yet'}{state})"

    def _repr_html_(self) -> str:
        state = "" if self.complete else f" (incomplete after {self.manifest.n_samples} inputs)"
        rows = [(entry.site, entry.n_samples, entry.shape[0], entry.shape[1:]) for entry in self.manifest.arrays.values()]
        return notebook.table(f"Activations in {self.path}{state}", ["site", "samples", "channels", "grid"], rows)

    def __getitem__(self, site: str | tuple[str, int | Sequence[int]]) -> StoredActivations:
        """The activations of a site: ``store["fno_blocks.2"]``, or ``store["fno_blocks.2", (32, 32)]`` where it has several
        grids; ValueError if there are none."""
        name, grid = (site, None) if isinstance(site, str) else site
        if name not in self.grids:
            raise ValueError(f"no activations of site {name!r} in {self.path}; there are: {', '.join(self.sites)}")
        grids = self.grids[name]
        shown = ", ".join(map(str, grids)) or "none yet"
        if isinstance(grid, int):
            grid = next((known for known in grids if set(known) == {grid}), (grid,))
        if grid is None and len(grids) != 1:
            raise ValueError(f"site {name!r} has activations on the grids {shown}: name one, as in store[{name!r}, (32, 32)]")
        wanted = grids[0] if grid is None else tuple(grid)
        for key, entry in self.manifest.arrays.items():
            if entry.site == name and entry.shape[1:] == wanted:
                return StoredActivations(self, key, entry, self._arrays[key])
        raise ValueError(f"site {name!r} has no activations on the grid {wanted}; there are: {shown}")

    def verify(self, batch_size: int = 64) -> None:
        """Read everything, and raise ValueError if a byte is not as it was written."""
        for key, entry in self.manifest.arrays.items():
            view = StoredActivations(self, key, entry, self._arrays[key])
            crc = 0
            for rows in view.rows.split(batch_size):
                crc = crc32(view.read_stored(rows), crc)
            if crc != entry.crc32["activations"]:
                raise damaged(self.path, key, "its checksum differs")


class StoredActivations(IndexedActivations):
    """The activations of one site on one grid of an `ActivationStore`, indexed like a tensor ``(N, channels, *grid)``.

    Attributes
    ----------
    site : str
        Name of the site.
    grid : tuple of int
        The grid.
    """

    def __init__(self, store: ActivationStore, key: str, entry: StoredArray, array: Any) -> None:
        self.site, self.grid = entry.site, entry.shape[1:]
        self._folder, self._key, self._array, self._manifest = store.path, key, array, store.manifest
        labels = {name: self._label(name, entry) for name in ("time", "trajectory") if name in entry.crc32}
        units, calendar = store.manifest.units.get("time"), store.manifest.calendar
        shape = (entry.n_samples, *entry.shape)
        super().__init__(shape, labels.get("time"), labels.get("trajectory"), units, calendar)

    @property
    def place(self) -> Place:
        """See `IndexedActivations.place`."""
        return self._manifest.place

    def _label(self, name: str, entry: StoredArray) -> Tensor:
        try:
            array = import_extra("zarr").open_array(self._folder, path=f"{self._key}/{name}", mode="r")
            labels = torch.from_numpy(np.asarray(array[: entry.n_samples]))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise damaged(self._folder, self._key, error) from error
        if crc32(labels) != entry.crc32[name]:
            raise damaged(self._folder, self._key, f"the checksum of {name} differs")
        return labels

    def read(self, rows: Tensor) -> Tensor:
        """See `IndexedActivations.read`; ValueError if a byte is not as it was written."""
        fields = self.read_stored(rows)
        return fields.float() if fields.dtype == torch.float16 else fields

    def read_stored(self, rows: Tensor) -> Tensor:
        """:meth:`read` in the precision of the store."""
        try:
            fields = torch.from_numpy(np.asarray(self._array.oindex[rows.numpy()]))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise damaged(self._folder, self._key, error) from error
        if fields.isnan().any():  # what Zarr gives for a file that is not there; nothing else is written
            raise damaged(self._folder, self._key, "a file is missing")
        return fields

    def quadrature(self) -> Tensor:
        """Weights of the grid's points, broadcastable to it, with sum one; ValueError if the basis is not known."""
        if self.basis is None:
            raise ValueError(
                "the store names no basis: give one when it is written, as in write(..., basis=SphericalBasis(...))"
            )
        return self.basis.quadrature(self.grid[-self.basis.n_dim :], like=torch.zeros(()))

    def to_xarray(self) -> xarray.DataArray:
        """As an xarray ``DataArray (sample, channel, *grid)``, with latitude and longitude, or the positions in the box, and
        the time and the trajectory of each sample as coordinates. Its values are read when they are used."""
        xr = import_extra("xarray")
        try:
            group = xr.open_zarr(self._folder, group=self._key, consolidated=False, chunks=None, decode_timedelta=False)
        except (OSError, JSONDecodeError, KeyError) as error:
            raise damaged(self._folder, self._key, error) from error
        return group["activations"].isel(sample=self.rows.numpy())
